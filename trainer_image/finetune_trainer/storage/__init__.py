"""The study's folder, on a disk or in an object store, and what to do while it does not answer."""
