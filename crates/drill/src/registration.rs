//! Drills that are registered before they are run: what will be done, and by which criteria it will be judged.
//!
//! Invariants: a registration is evidence like a drill's: created once, with a manifest that a link of the chain names;
//! it holds the profiles with their digests, so that criteria which were changed afterwards show; a run uses a
//! registration once, and says where it did not keep to it.

use diagnostic::{Error, Result};
use jiff::Timestamp;
use repository::ClusterRepository;
use serde::{Deserialize, Serialize};

use crate::evidence::{sha256, sha256_hex};
use crate::facts::{Facts, People, ProfileFacts, Registration};
use crate::forecast::{DRILLS_READ, EarlierDrill};
use crate::options::Drill;
use crate::preflight::Preflight;

/// The file that holds a registration.
const FILE: &str = "registration.json";

/// What is registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// Of this shape.
    pub version: u32,
    /// The drill's own profile first.
    pub profiles: Vec<ProfileFacts>,
    /// BLAKE3 over the profiles' digests.
    pub policy_digest: String,
    /// `bracket`, or the point in words.
    pub scenario: String,
    /// Who is to take part.
    pub people: People,
    /// When the drill is to be run, if that was said.
    pub due: Option<Timestamp>,
    /// When it was registered.
    pub registered_at: Timestamp,
    /// The restore plan as it stood then, in words.
    pub plan: String,
}

/// The digest of everything that a drill is judged by.
pub fn policy_digest(profiles: &[ProfileFacts]) -> String {
    let mut hasher = blake3::Hasher::new();
    for profile in profiles {
        hasher.update(profile.name.as_bytes());
        hasher.update(&[0]);
        hasher.update(profile.digest.as_bytes());
        hasher.update(&[0]);
    }
    hasher.finalize().to_hex().to_string()
}

/// Every profile of a drill, the own one first.
pub fn profiles_of(drill: &Drill<'_>) -> Vec<ProfileFacts> {
    let mut profiles = vec![drill.profile.facts.clone()];
    profiles.extend(drill.also.iter().map(|also| ProfileFacts {
        objectives_only: true,
        ..also.facts.clone()
    }));
    profiles
}

/// Keeps a registration; its name.
pub fn register(drill: &Drill<'_>, preflight: &Preflight, due: Option<Timestamp>) -> Result<String> {
    let now = (drill.clock)();
    let profiles = profiles_of(drill);
    let registered = Registered {
        version: 1,
        policy_digest: policy_digest(&profiles),
        profiles,
        scenario: drill.profile.target_text.clone(),
        people: drill.people.clone(),
        due,
        registered_at: now,
        plan: match &preflight.plan {
            Ok(plan) => plan.to_string(),
            Err(error) => format!("no plan: {}", error.code()),
        },
    };
    let text = serde_json::to_vec_pretty(&registered).map_err(|error| {
        Error::new("evidence-encode", "the registration cannot be written as JSON").caused_by(&error)
    })?;
    let id = repository::registration_id(now);
    let manifest = format!("{}  {FILE}\n", sha256_hex(&text));
    drill.repository.put_evidence(&id, FILE, &text)?;
    drill
        .repository
        .put_evidence(&id, crate::evidence::MANIFEST, manifest.as_bytes())?;
    drill
        .repository
        .append_link(&id, sha256(manifest.as_bytes()), now)?;
    Ok(id)
}

/// A registration by its name.
pub fn read(repository: &ClusterRepository, id: &str) -> Result<Option<Registered>> {
    let Some(bytes) = repository.get_evidence(id, FILE)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Error::new("evidence-decode", format!("{FILE} of {id} cannot be read")).caused_by(&error)
    })
}

/// The registration that this run is for: the newest one of its profile that no run has used yet.
pub(crate) fn of_run(drill: &Drill<'_>, earlier: &[EarlierDrill], facts: &Facts) -> Option<Registration> {
    let mut names = drill.repository.list_registrations().ok()?;
    names.sort();
    let used = |id: &String| {
        earlier
            .iter()
            .any(|drill| drill.registration.as_ref() == Some(id))
    };
    // Older than all that is looked at: whether it was used cannot be told.
    let oldest = (earlier.len() >= DRILLS_READ)
        .then(|| earlier.iter().filter_map(|drill| drill.started_at).min())
        .flatten();
    names.iter().rev().find_map(|id| {
        let registered = read(drill.repository, id).ok()??;
        let own = registered.profiles.first()?.name == drill.profile.name;
        let fresh = !used(id) && oldest.is_none_or(|oldest| registered.registered_at > oldest);
        (own && fresh).then(|| compare(id, &registered, facts))
    })
}

/// Where a run differs from what was registered.
pub fn compare(id: &str, registered: &Registered, facts: &Facts) -> Registration {
    let mut deviations = Vec::new();
    for profile in &facts.profiles {
        match registered.profiles.iter().find(|each| each.name == profile.name) {
            None => deviations.push(format!("profile {} was not registered", profile.name)),
            Some(each) if each.digest != profile.digest => {
                deviations.push(format!("profile {} was changed since", profile.name));
            }
            Some(_) => {}
        }
    }
    for profile in &registered.profiles {
        if !facts.profiles.iter().any(|each| each.name == profile.name) {
            deviations.push(format!("profile {} was registered and not applied", profile.name));
        }
    }
    if registered.scenario != facts.target.requested {
        deviations.push(format!(
            "the point is \"{}\", registered was \"{}\"",
            facts.target.requested, registered.scenario
        ));
    }
    for (role, registered, now) in [
        ("operator", &registered.people.operator, &facts.people.operator),
        ("reviewer", &registered.people.reviewer, &facts.people.reviewer),
    ] {
        if registered != now {
            let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "nobody".into());
            deviations.push(format!(
                "the {role} is {}, registered was {}",
                name(now),
                name(registered)
            ));
        }
    }
    Registration {
        id: id.into(),
        registered_at: registered.registered_at,
        policy_digest: registered.policy_digest.clone(),
        policy_digest_now: policy_digest(&facts.profiles),
        deviations,
    }
}
