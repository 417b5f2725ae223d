HELPERS = ("stored",)  # files of this package that are parts, not methods
