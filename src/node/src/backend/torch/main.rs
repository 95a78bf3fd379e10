//! x
fn main() { let _ = tch::Cuda::is_available(); }
