HELPERS = ("engine", "rules")  # files of this package that are parts, not samplers
