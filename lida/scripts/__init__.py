"""The console command, and the two scripts at the top of the repository as modules: links to the files that one reads."""
