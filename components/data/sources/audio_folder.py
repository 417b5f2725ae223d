"""Any folder of sounds: WAV, FLAC, OGG, of mixed rates and lengths, with class subfolders, a table, or texts beside them.

    sounds/                        or   sounds/metadata.csv          or   sounds/0001.flac
      rain/0001.wav                       file_name,label,text              sounds/0001.txt   what is said in it
      wind/0001.ogg                       0001.wav,rain,rain on a roof

Mechanism and what is absent: `_folder`; `components.data.audio` says what counts as a sound.
"""

from __future__ import annotations

from components.data.sources._folder import FolderSource


class AudioFolder(FolderSource):
    """Sounds of a folder or of a URL such as `s3://bucket/sounds`; captions are transcripts or descriptions.

    >>> import tempfile, soundfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     soundfile.write(f"{folder}/a.flac", [0.0, 0.5, -0.5], 16000)
    ...     [sample.key for sample in AudioFolder(path=folder).samples()]
    ['a.flac']
    """

    modality = "audio"
    modalities = ("audio",)
    expected = "sounds (WAV, FLAC, OGG)"
