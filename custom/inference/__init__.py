"""Translation of files: what is asked for, the translation itself, how it is saved."""
