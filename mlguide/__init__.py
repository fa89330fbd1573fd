"""mlguide: the helpers of the book, one module per idea; each chapter names the module it uses."""
