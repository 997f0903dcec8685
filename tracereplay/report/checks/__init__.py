"""What came of checks, in the forms that people and machines take: one module a form, each with `render`."""
