//! The process that the user started: it starts the tracer, keeps the capture, and renders the report.
