//! One typed configuration: embedded default < file < environment < flag.
