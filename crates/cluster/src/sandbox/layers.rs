//! Entering the layers of a quarantine, in the one order in which they can be entered.
//!
//! As root: mount, network and IPC namespaces first (they need root's rights), then root is given up for
//! good, then a user namespace, so that the account has no more power over what was mounted. As an ordinary
//! account: the user namespace first, since it gives the right to the others. In both cases capabilities are
//! dropped and Landlock comes last. Invariant: what fails is reported as unavailable, except giving up root,
//! which must work.

use super::mounts::{self, View};
use super::{LayerState, Layers, Network, Quarantine};
use diagnostic::{Error, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Gid, Uid};
use rustix::thread::UnshareFlags;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The newest one that we know; an older kernel gives what it has.
const LANDLOCK_ABI: ABI = ABI::V9;

/// Devices that a server may write to.
const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

/// Applies all layers to the current process, which must have one thread and must not be root.
pub fn enter(quarantine: &Quarantine) -> Result<Layers> {
    enter_as(quarantine, None, true)
}

/// The same; as root, becomes `run_as`.
pub(super) fn enter_as(
    quarantine: &Quarantine,
    run_as: Option<(u32, u32)>,
    namespaces: bool,
) -> Result<Layers> {
    if fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(1) != 1 {
        return Err(Error::new(
            "sandbox-threads",
            "a process of several threads cannot enter a quarantine",
        ));
    }
    let root = rustix::process::geteuid().is_root();
    let run_as = match (root, run_as) {
        (true, Some((0, _)) | None) => {
            return Err(Error::new("root-not-allowed", "a copy does not run as root")
                .detail("The specification of the quarantine names no ordinary account to become."));
        }
        (true, Some(account)) => Some(account),
        (false, _) => None,
    };
    let folder = fs::canonicalize(&quarantine.folder).map_err(|error| {
        let message = format!(
            "cannot find the quarantine's folder \"{}\"",
            quarantine.folder.display()
        );
        Error::io("sandbox-spec", message, &error)
    })?;
    let landlock_abi = landlock_abi();
    let view = View::new(
        &folder,
        &quarantine.hidden,
        &quarantine.readable,
        landlock_abi > 0,
    )?;
    let unwanted = || LayerState::unavailable("not wanted");
    let mut layers = Layers {
        landlock: unwanted(),
        landlock_abi,
        user_namespace: unwanted(),
        mount_namespace: unwanted(),
        network_namespace: unwanted(),
        ipc_namespace: unwanted(),
        no_new_privileges: unwanted(),
        private_shared_memory: false,
    };
    if root && namespaces {
        other_namespaces(&mut layers, quarantine, &view)?;
    }
    if let Some((uid, gid)) = run_as {
        give_up_root(uid, gid)?;
    }
    if namespaces {
        layers.user_namespace = state(user_namespace());
        if !root && layers.user_namespace.is_applied() {
            other_namespaces(&mut layers, quarantine, &view)?;
        } else if !root {
            let needed = || LayerState::unavailable("needs a user namespace or root");
            layers.mount_namespace = needed();
            layers.network_namespace = needed();
            layers.ipc_namespace = needed();
        }
    }
    drop_capabilities()?;
    layers.no_new_privileges = state(rustix::thread::set_no_new_privs(true).map_err(Into::into));
    // The working directory may be one that is hidden now.
    std::env::set_current_dir(&folder).map_err(|error| {
        Error::io(
            "sandbox-mount",
            format!("the folder \"{}\" was lost", folder.display()),
            &error,
        )
    })?;
    layers.landlock = match landlock_abi {
        0 => LayerState::unavailable("the kernel has no Landlock, or it is not enabled"),
        _ => restrict(&folder, quarantine.network, layers.private_shared_memory),
    };
    Ok(layers)
}

fn state(result: io::Result<()>) -> LayerState {
    match result {
        Ok(()) => LayerState::Applied,
        Err(error) => LayerState::unavailable(error),
    }
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags below never hold FILES, the only one that could take a file descriptor away from code
    // that relies on it; and this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Mount, network and IPC namespaces, and what is done inside them.
fn other_namespaces(layers: &mut Layers, quarantine: &Quarantine, view: &View) -> Result<()> {
    layers.ipc_namespace = state(unshare(UnshareFlags::NEWIPC));
    layers.network_namespace = match quarantine.network {
        Network::Granted => LayerState::unavailable("the network was granted"),
        Network::None => state(unshare(UnshareFlags::NEWNET)),
    };
    if layers.network_namespace.is_applied() {
        // The statistics collector of 13 and 14 speaks to itself over it. Without it the server runs, too.
        let _ = loopback_up();
    }
    match unshare(UnshareFlags::NEWNS) {
        Ok(()) => {
            let mounted = mounts::apply(view)?;
            layers.mount_namespace = mounted.hidden;
            layers.private_shared_memory = mounted.private_shared_memory;
        }
        Err(error) => layers.mount_namespace = LayerState::unavailable(error),
    }
    Ok(())
}

/// Becomes an ordinary account, in all of its ids and without further groups.
fn give_up_root(uid: u32, gid: u32) -> Result<()> {
    let failed = |error: rustix::io::Errno| {
        Error::io(
            "sandbox-privileges",
            format!("cannot become uid {uid}"),
            &io::Error::from(error),
        )
    };
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[]).map_err(failed)?;
    rustix::thread::set_thread_res_gid(group, group, group).map_err(failed)?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(failed)?;
    if rustix::process::geteuid() != user || rustix::process::getuid() != user {
        return Err(Error::new(
            "sandbox-privileges",
            format!("uid {uid} was not taken on"),
        ));
    }
    // A change of account makes /proc/self unwritable, and the user namespace is set up there.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
    Ok(())
}

/// A user namespace in which our account is what it was, and no other account exists.
fn user_namespace() -> io::Result<()> {
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    unshare(UnshareFlags::NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1\n"))?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1\n"))
}

fn drop_capabilities() -> Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    rustix::thread::set_capabilities(None, sets).map_err(|error| {
        Error::io(
            "sandbox-privileges",
            "cannot give up capabilities",
            &io::Error::from(error),
        )
    })
}

/// Version of Landlock that the kernel offers; 0 when there is none.
fn landlock_abi() -> u32 {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the system call takes a null pointer and a size of 0, and only gives a number
    // (landlock_create_ruleset(2)).
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Landlock: read everywhere, write below `folder` only, no TCP, no signals or abstract sockets to the
/// outside.
fn restrict(folder: &Path, network: Network, private_shared_memory: bool) -> LayerState {
    let mut writable: Vec<PathBuf> = vec![folder.to_path_buf()];
    if private_shared_memory {
        writable.push("/dev/shm".into());
    }
    let device: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let applied = (|| {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?;
        if network == Network::None {
            ruleset = ruleset.handle_access(AccessNet::from_all(LANDLOCK_ABI))?;
        }
        let mut rules = ruleset
            .create()?
            .add_rules(path_beneath_rules(["/"], AccessFs::from_read(LANDLOCK_ABI)))?
            .add_rules(path_beneath_rules(&DEVICES, device))?;
        for path in &writable {
            // Not through the helper, which leaves out what it cannot open: the folder must be there.
            rules = rules.add_rule(PathBeneath::new(
                PathFd::new(path)?,
                AccessFs::from_all(LANDLOCK_ABI),
            ))?;
        }
        Ok::<_, Box<dyn std::error::Error>>(rules.restrict_self()?.ruleset)
    })();
    match applied {
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => LayerState::Applied,
        Ok(RulesetStatus::NotEnforced) => LayerState::unavailable("the kernel did not enforce it"),
        Err(error) => LayerState::unavailable(error),
    }
}

/// Sets `lo` up in a fresh network namespace.
fn loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: ifreq is plain data for which all zeros is a value; the name is shorter than the field; both
    // requests read and write only that structure (netdevice(7)), which outlives the calls.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
