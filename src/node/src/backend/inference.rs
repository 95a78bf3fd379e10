//! Converts libtorch's error texts to failures: keeps the lines with the reason and drops the C++ stack.
//!
//! Does not: use libtorch's types, so that its tests run without libtorch.

use lamagrid_domain::{Failure, FailureKind};

/// Upstream and its users search an error for exactly this text.
const CUDA_OOM: &str = "CUDA out of memory. ";
/// Texts that identify a failed allocation, on the GPU or on the host.
const CUDA_SIGNS: [&str; 2] = ["CUDA out of memory", "CUDA error: out of memory"];
const HOST_SIGNS: [&str; 2] = ["DefaultCPUAllocator", "std::bad_alloc"];
/// Number of lines of an error that are kept.
const KEPT_LINES: usize = 4;

/// Converts an error text of libtorch to a failure.
#[must_use]
pub fn inference_failure(text: &str) -> Failure {
    let holds = |signs: [&str; 2]| signs.iter().any(|sign| text.contains(sign));
    let summary = error_summary(text);
    if holds(CUDA_SIGNS) {
        let text = if summary.contains(CUDA_OOM) { summary } else { format!("{CUDA_OOM}{summary}") };
        return Failure::new(FailureKind::OutOfMemory, text);
    }
    let kind = if holds(HOST_SIGNS) { FailureKind::OutOfMemory } else { FailureKind::Inference };
    Failure::new(kind, summary)
}

/// Returns the useful part of an error text: the reason, without the call stack.
fn error_summary(text: &str) -> String {
    let text = text.strip_prefix("Internal torch error: ").unwrap_or(text);
    // The TorchScript interpreter puts the reason last, after the traceback through the model's source.
    let reason = text.rfind("RuntimeError: ").map_or(text, |at| &text[at + "RuntimeError: ".len()..]);
    let lines: Vec<&str> = reason
        .lines()
        .take_while(|line| !line.starts_with("Exception raised from"))
        .filter(|line| !line.trim().is_empty())
        .take(KEPT_LINES)
        .collect();
    if lines.is_empty() { "libtorch gives no reason".into() } else { lines.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_is_dropped_and_the_reason_is_kept() {
        let text = "Internal torch error: The following operation failed in the TorchScript interpreter.\n\
            Traceback of TorchScript (most recent call last):\n  File \"x.py\", line 3, in forward\n    return a\n\
            RuntimeError: shape '[3]' is invalid for input of size 4\n\nException raised from infer at a.cpp:1\n\
            frame #0: c10::Error";
        let failure = inference_failure(text);
        assert_eq!(failure.kind, FailureKind::Inference);
        assert_eq!(failure.message, "shape '[3]' is invalid for input of size 4");
        assert_eq!(inference_failure("").message, "libtorch gives no reason");
    }

    #[test]
    fn out_of_memory_is_recognised_and_has_upstreams_text() {
        for text in [
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB\nException raised from x",
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        ] {
            let failure = inference_failure(text);
            assert_eq!(failure.kind, FailureKind::OutOfMemory);
            assert!(failure.message.contains("CUDA out of memory. "), "{}", failure.message);
        }
        let text = "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.";
        assert_eq!(inference_failure(text).kind, FailureKind::OutOfMemory);
        assert!(!inference_failure(text).message.contains(CUDA_OOM));
    }
}
