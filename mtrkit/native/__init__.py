"""Everything that knows the compiled library: loading it, its structs, and calls into it. It knows no model."""
