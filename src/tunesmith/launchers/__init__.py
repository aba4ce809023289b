"""One file a way to start the processes of a run; `tunesmith.launching` says what each has, and starts them."""
