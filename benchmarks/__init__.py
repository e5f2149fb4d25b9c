"""The benchmarks: what each figure in the documentation was made with. See README.md beside this file."""
