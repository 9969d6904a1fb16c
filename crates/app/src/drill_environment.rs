//! The environment variables of a drill, as runbooks set them: read here and nowhere else.
//!
//! Invariants: `TARGET_ENV`, where it is set, is exactly `staging`, and then a word of consent is needed; an environment
//! file of production is refused whoever names it; a value that cannot be understood is refused, never ignored. A drill
//! in a sandbox needs none of these variables.

use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use drill::facts::{CheckResult, GateFacts};

/// The file that is looked at where `ENV_FILE` does not name one.
const ENV_FILE: &str = ".env";
/// The application's base where `API_BASE_URL` does not say.
const API_BASE_URL: &str = "http://localhost:8000";

/// What the variables say.
#[derive(Debug, Clone, PartialEq)]
pub struct DrillEnvironment {
    /// `staging`, or `sandbox` where nothing names an environment.
    pub environment: String,
    /// A backup's id, or the path of an archive to import.
    pub base_backup: Option<String>,
    /// The path of an archive of WAL to import.
    pub wal_archive: Option<PathBuf>,
    pub target_time: Option<String>,
    pub application: Application,
    /// `None`: as the profile says.
    pub skip_backup: Option<bool>,
    /// Guards that were looked at, and hold.
    pub guards: Vec<GateFacts>,
}

impl DrillEnvironment {
    /// Whether runbooks named an environment.
    pub fn is_staging(&self) -> bool {
        self.environment == "staging"
    }
}

/// Reads the variables of this process. Errors: `target-env`, `confirm-drill`, `env-file`, `env-file-production`,
/// `drill-variable`.
pub fn read() -> Result<DrillEnvironment> {
    of(&|name| std::env::var(name).ok(), &|path| {
        std::fs::read_to_string(path)
    })
}

/// Where the application is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    /// The base of its endpoints.
    pub api_base_url: String,
    /// The base of its pages, for programs of checks.
    pub web_base_url: Option<String>,
}

/// The application alone, for a command that only looks and needs no consent.
pub fn application() -> Application {
    application_of(&|name| std::env::var(name).ok())
}

fn application_of(variable: &dyn Fn(&str) -> Option<String>) -> Application {
    Application {
        api_base_url: set(variable, "API_BASE_URL").unwrap_or_else(|| API_BASE_URL.to_owned()),
        web_base_url: set(variable, "WEB_BASE_URL"),
    }
}

/// A variable that says something.
fn set(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    variable(name).filter(|value| !value.trim().is_empty())
}

fn of(
    variable: &dyn Fn(&str) -> Option<String>,
    file: &dyn Fn(&Path) -> std::io::Result<String>,
) -> Result<DrillEnvironment> {
    let set = |name: &str| set(variable, name);
    let mut guards = Vec::new();
    let mut guard = |id: &str, title: &str, limit: &str, actual: String| {
        guards.push(GateFacts {
            id: id.into(),
            title: title.into(),
            limit: limit.into(),
            actual,
            result: CheckResult::Pass,
            blocking: true,
            hint: None,
        });
    };
    let environment = set("TARGET_ENV");
    if let Some(environment) = &environment {
        if environment != "staging" {
            return Err(Error::usage(
                "target-env",
                format!("TARGET_ENV is {environment:?}, and a drill runs on \"staging\" only"),
            )
            .hint("Set TARGET_ENV=staging on a staging host; leave it unset for a drill in a sandbox, which touches no environment."));
        }
        guard(
            "target-env",
            "The environment that was named",
            "exactly \"staging\"",
            environment.clone(),
        );
        match set("CONFIRM_DRILL").as_deref() {
            Some("YES") => guard("confirm-drill", "Consent", "YES", "YES".into()),
            other => {
                let said = other.map_or("not set".to_owned(), |other| format!("{other:?}"));
                return Err(Error::usage(
                    "confirm-drill",
                    format!("a drill on staging needs CONFIRM_DRILL=YES; it is {said}"),
                )
                .hint("Run `TARGET_ENV=staging CONFIRM_DRILL=YES pgproof drill run`."));
            }
        }
    }
    let named = set("ENV_FILE");
    if environment.is_some() || named.is_some() {
        let path = PathBuf::from(named.clone().unwrap_or_else(|| ENV_FILE.to_owned()));
        match file(&path) {
            Ok(text) => {
                refuse_production(&path, &text)?;
                let actual = format!("{} does not say so", path.display());
                guard("env-file", "The environment file", "no APP_ENV=prod", actual);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {}
            Err(error) => {
                let message = format!(
                    "cannot read the environment file {:?}",
                    path.display().to_string()
                );
                return Err(Error::usage("env-file", message).caused_by(&error).hint(
                    "ENV_FILE must name a file that can be read: it might say that this is production.",
                ));
            }
        }
    }
    let skip_backup = match set("SKIP_BACKUP").as_deref() {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some(other) => {
            let message = format!("SKIP_BACKUP is {other:?}; it is \"true\" or \"false\"");
            return Err(Error::usage("drill-variable", message));
        }
    };
    Ok(DrillEnvironment {
        environment: environment.unwrap_or_else(|| "sandbox".to_owned()),
        base_backup: set("BASE_BACKUP").filter(|value| value != "auto"),
        wal_archive: set("WAL_ARCHIVE")
            .filter(|value| value != "auto")
            .map(PathBuf::from),
        target_time: set("TARGET_TIME"),
        application: application_of(variable),
        skip_backup,
        guards,
    })
}

/// `APP_ENV=prod` in any spelling that a shell or a container's environment file takes.
fn refuse_production(path: &Path, text: &str) -> Result<()> {
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let value = value.split(" #").next().unwrap_or(value);
        let value = value.trim().trim_matches(['"', '\'']).trim().to_ascii_lowercase();
        if name.trim() == "APP_ENV" && (value == "prod" || value == "production") {
            return Err(Error::usage(
                "env-file-production",
                format!("{}, line {}: APP_ENV is {value}", path.display(), number + 1),
            )
            .detail("A drill does not run where the environment is production's.")
            .hint("Run it on a staging host, or name staging's file with ENV_FILE."));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn with(variables: &[(&str, &str)], files: &[(&str, &str)]) -> Result<DrillEnvironment> {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let files: BTreeMap<&str, &str> = files.iter().copied().collect();
        of(
            &|name| variables.get(name).map(|value| (*value).to_owned()),
            &|path| {
                let found = path.to_str().and_then(|path| files.get(path));
                found
                    .map(|text| (*text).to_owned())
                    .ok_or_else(|| std::io::ErrorKind::NotFound.into())
            },
        )
    }

    fn code(variables: &[(&str, &str)], files: &[(&str, &str)]) -> String {
        let error = with(variables, files).expect_err("refused");
        assert_eq!(error.class(), diagnostic::Class::Usage);
        error.code().to_owned()
    }

    const STAGING: [(&str, &str); 2] = [("TARGET_ENV", "staging"), ("CONFIRM_DRILL", "YES")];

    #[test]
    fn a_sandbox_needs_no_consent_and_staging_needs_the_word() {
        let sandbox = with(&[], &[(".env", "APP_ENV=prod")]).expect("a sandbox");
        assert_eq!(sandbox.environment, "sandbox");
        assert!(sandbox.guards.is_empty());
        assert_eq!(sandbox.application.api_base_url, "http://localhost:8000");
        assert_eq!(sandbox.application.web_base_url, None);
        let staging = with(&STAGING, &[]).expect("consent was given");
        assert_eq!(staging.environment, "staging");
        assert_eq!(staging.guards.len(), 2);
        assert_eq!(code(&[("TARGET_ENV", "staging")], &[]), "confirm-drill");
        for word in ["yes", "true", "Y"] {
            assert_eq!(
                code(&[("TARGET_ENV", "staging"), ("CONFIRM_DRILL", word)], &[]),
                "confirm-drill"
            );
        }
    }

    #[test]
    fn any_other_environment_is_refused() {
        for name in ["prod", "production", "Staging", "staging2", "dev"] {
            assert_eq!(
                code(&[("TARGET_ENV", name), ("CONFIRM_DRILL", "YES")], &[]),
                "target-env"
            );
        }
    }

    #[test]
    fn an_environment_file_of_production_is_refused_in_every_spelling() {
        for line in [
            "APP_ENV=prod",
            "export APP_ENV=prod",
            "APP_ENV=\"prod\"",
            "APP_ENV='production'",
            "  APP_ENV = PROD # the real one",
        ] {
            let text = format!("DB=x\n{line}\n");
            assert_eq!(
                code(&STAGING, &[(".env", &text)]),
                "env-file-production",
                "{line}"
            );
            let named = [("ENV_FILE", "/srv/app.env")];
            assert_eq!(
                code(&named, &[("/srv/app.env", &text)]),
                "env-file-production",
                "{line}"
            );
        }
        let staging = with(&STAGING, &[(".env", "APP_ENV=staging\nNOT_APP_ENV=prod\n")]).expect("staging's");
        assert_eq!(staging.guards.len(), 3);
        assert_eq!(code(&[("ENV_FILE", "/missing")], &[]), "env-file");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert_eq!(code(&[("SKIP_BACKUP", "1")], &[]), "drill-variable");
        let read = with(
            &[
                ("SKIP_BACKUP", "true"),
                ("BASE_BACKUP", "auto"),
                ("TARGET_TIME", " "),
                ("WEB_BASE_URL", "http://staging:3000"),
            ],
            &[],
        )
        .expect("understood");
        assert_eq!(
            read.application.web_base_url.as_deref(),
            Some("http://staging:3000")
        );
        assert_eq!(
            (read.skip_backup, read.base_backup, read.target_time),
            (Some(true), None, None)
        );
    }
}
