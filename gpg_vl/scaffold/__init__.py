"""Files that `gpg-vl init` and `gpg-vl new-task` write as a starting point."""
