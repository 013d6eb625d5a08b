"""What each op means: schema, reference, meta function, examples, tolerance, work. No kernel lives here."""
