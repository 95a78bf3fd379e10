//! Messages, frames, limits and sockets. The only crate that names zeromq.
