"""The two scripts at the top of the repository, as modules of the installed package: links to the files that one reads."""
