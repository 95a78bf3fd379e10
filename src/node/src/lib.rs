//! A process that works on tasks, one per device.
