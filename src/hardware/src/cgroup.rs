//! Reads the limits of the control groups that contain this process, of version 2 and of version 1.
//!
//! A group is limited by all groups above it, so the smallest limit counts.

use std::path::{Path, PathBuf};

/// Limits at or above this are the kernel's way of writing "no limit" in version 1.
const UNLIMITED: u64 = 1 << 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A group's directory in one hierarchy.
#[derive(Debug, Clone)]
struct Group {
    dir: PathBuf,
    version: Version,
}

impl Group {
    fn read(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.join(file)).ok()
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    fn memory_limit(&self) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max", // "max" is no number
        };
        self.number(file).filter(|bytes| *bytes < UNLIMITED)
    }

    /// Memory that the group uses and the kernel cannot take back easily.
    fn memory_used(&self) -> Option<u64> {
        let (file, cache) = match self.version {
            Version::V1 => ("memory.usage_in_bytes", "total_inactive_file "),
            Version::V2 => ("memory.current", "inactive_file "),
        };
        let stat = self.read("memory.stat").unwrap_or_default();
        let reclaimable = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok());
        Some(self.number(file)?.saturating_sub(reclaimable.unwrap_or(0)))
    }

    /// Processor time per time, in cores.
    fn cores(&self) -> Option<f64> {
        let (quota, period) = match self.version {
            Version::V1 => {
                let quota = self.read("cpu.cfs_quota_us")?.trim().parse::<f64>().ok()?;
                (quota, self.number("cpu.cfs_period_us")? as f64)
            }
            Version::V2 => {
                let text = self.read("cpu.max")?;
                let mut words = text.split_whitespace();
                (words.next()?.parse::<f64>().ok()?, words.next()?.parse::<f64>().ok()?)
            }
        };
        (quota > 0.0 && period > 0.0).then(|| quota / period)
    }
}

/// The groups that limit this process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Groups {
    memory: Vec<Group>,
    cpu: Vec<Group>,
}

impl Groups {
    /// Finds the groups, from the innermost to the outermost that this process can see.
    pub(crate) fn find(proc: &Path, sys: &Path) -> Self {
        let own = std::fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        let mounts = std::fs::read_to_string(proc.join("self/mountinfo")).unwrap_or_default();
        let mut groups = Self::default();
        for mount in mounts.lines().filter_map(Mount::parse) {
            for path in own.lines().filter_map(|line| mount.path_of(line)) {
                let chain = mount.chain(path, sys);
                if mount.has("memory") {
                    groups.memory.extend(chain.clone());
                }
                if mount.has("cpu") {
                    groups.cpu.extend(chain);
                }
            }
        }
        groups
    }

    /// The smallest limit on memory, in bytes.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        self.memory.iter().filter_map(Group::memory_limit).min()
    }

    /// The memory in bytes that the groups leave to this process now.
    pub(crate) fn memory_free(&self) -> Option<u64> {
        let free = |group: &Group| Some(group.memory_limit()?.saturating_sub(group.memory_used()?));
        self.memory.iter().filter_map(free).min()
    }

    /// The smallest limit on processor time, in whole cores; at least 1.
    pub(crate) fn cores(&self) -> Option<u32> {
        let least = self.cpu.iter().filter_map(Group::cores).reduce(f64::min)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
        let whole = least as u32;
        Some(whole.max(1))
    }
}

/// One mounted hierarchy, as a line of `mountinfo` describes it.
#[derive(Debug)]
struct Mount<'a> {
    /// The group that is mounted; `/` unless a container shows a part of the host's tree.
    root: &'a str,
    point: &'a str,
    version: Version,
    controllers: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (fields, kind) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut kind = kind.split(' ');
        let version = match kind.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        Some(Self { root, point, version, controllers: kind.nth(1)? })
    }

    fn has(&self, controller: &str) -> bool {
        self.version == Version::V2 || self.controllers.split(',').any(|each| each == controller)
    }

    /// The path that a line of `/proc/self/cgroup` gives for this hierarchy.
    fn path_of(&self, line: &'a str) -> Option<&'a str> {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_same = match self.version {
            Version::V2 => controllers.is_empty(),
            Version::V1 => controllers.split(',').any(|each| !each.is_empty() && self.has(each)),
        };
        is_same.then_some(path)
    }

    /// The directories from the process's own group up to the mount point.
    fn chain(&self, path: &str, sys: &Path) -> Vec<Group> {
        let point = match Path::new(self.point).strip_prefix("/sys") {
            Ok(below) => sys.join(below),
            Err(_) => PathBuf::from(self.point),
        };
        // A group outside the mounted part cannot be seen; the mount point's own limits still hold.
        let inside = Path::new(path).strip_prefix(self.root).ok();
        let inside = inside.filter(|path| !path.components().any(|part| part.as_os_str() == ".."));
        let own = point.join(inside.unwrap_or(Path::new("")));
        own.ancestors()
            .take_while(|dir| dir.starts_with(&point))
            .map(|dir| Group { dir: dir.to_owned(), version: self.version })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up host: its directories are below a temporary one.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new(cgroup: &str, mountinfo: &str) -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            host.write("proc/self/cgroup", cgroup);
            host.write("proc/self/mountinfo", mountinfo);
            host
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn groups(&self) -> Groups {
            Groups::find(&self.0.path().join("proc"), &self.0.path().join("sys"))
        }
    }

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_smallest_limit_up_the_tree_counts_in_version_2() {
        let host = Host::new("0::/outer/inner/own\n", V2);
        host.write("sys/fs/cgroup/outer/memory.max", "2000000\n");
        host.write("sys/fs/cgroup/outer/memory.current", "500000\n");
        host.write("sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 100000\n");
        host.write("sys/fs/cgroup/outer/inner/memory.max", "3000000\n");
        host.write("sys/fs/cgroup/outer/inner/own/memory.max", "max\n");
        host.write("sys/fs/cgroup/outer/cpu.max", "400000 100000\n");
        host.write("sys/fs/cgroup/outer/inner/cpu.max", "250000 100000\n");
        host.write("sys/fs/cgroup/outer/inner/own/cpu.max", "max 100000\n");
        let groups = host.groups();
        assert_eq!(groups.memory_limit(), Some(2_000_000));
        assert_eq!(groups.memory_free(), Some(1_600_000));
        assert_eq!(groups.cores(), Some(2));
    }

    #[test]
    fn limits_of_version_1_and_its_way_of_writing_no_limit() {
        let host = Host::new("4:memory:/process/x\n2:cpu,cpuacct:/process/x\n1:name=systemd:/\n0::/\n", V1);
        host.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        host.write("sys/fs/cgroup/memory/process/memory.limit_in_bytes", "4000000\n");
        host.write("sys/fs/cgroup/memory/process/memory.usage_in_bytes", "1000000\n");
        host.write(
            "sys/fs/cgroup/memory/process/memory.stat",
            "inactive_file 7\ntotal_inactive_file 250000\n",
        );
        host.write("sys/fs/cgroup/memory/process/x/memory.limit_in_bytes", "9223372036854771712\n");
        host.write("sys/fs/cgroup/cpu,cpuacct/process/cpu.cfs_quota_us", "50000\n");
        host.write("sys/fs/cgroup/cpu,cpuacct/process/cpu.cfs_period_us", "100000\n");
        host.write("sys/fs/cgroup/cpu,cpuacct/process/x/cpu.cfs_quota_us", "-1\n");
        host.write("sys/fs/cgroup/cpu,cpuacct/process/x/cpu.cfs_period_us", "100000\n");
        let groups = host.groups();
        assert_eq!(groups.memory_limit(), Some(4_000_000));
        assert_eq!(groups.memory_free(), Some(3_250_000));
        // Half a core still runs one thread.
        assert_eq!(groups.cores(), Some(1));
    }

    #[test]
    fn a_container_that_shows_a_part_of_the_hosts_tree() {
        let mount = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        for path in ["/docker/abc", "/docker/abc/inner", "/elsewhere", "/docker/abc/../x"] {
            let host = Host::new(&format!("4:memory:{path}\n"), mount);
            host.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "77\n");
            assert_eq!(host.groups().memory_limit(), Some(77), "{path}");
        }
    }

    #[test]
    fn no_groups_and_nonsense_are_no_limits() {
        for (cgroup, mounts) in [("", ""), ("0::/\n", V2), ("x\n::\n4:memory\n", "1 2 3 - \n- cgroup\n")] {
            let host = Host::new(cgroup, mounts);
            host.write("sys/fs/cgroup/memory.max", "lots\n");
            host.write("sys/fs/cgroup/cpu.max", "\n");
            let groups = host.groups();
            assert_eq!((groups.memory_limit(), groups.memory_free(), groups.cores()), (None, None, None));
        }
    }
}
