//! What a build is doing, read from what its tools print.

use std::fmt;

/// A part of a build, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Another process builds the same image.
    Wait,
    /// apt reads the mirror's package lists.
    Lists,
    /// apt downloads packages.
    Download,
    /// dpkg unpacks and configures the essential packages.
    Base,
    /// apt downloads and installs the other packages.
    Install,
    /// What no agent needs is removed.
    Strip,
    /// The image is written.
    Image,
    /// The template of the writable disk is written.
    Scratch,
    /// The files are hashed and put in place.
    Store,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wait => "waiting for another build of this image",
            Self::Lists => "reading package lists",
            Self::Download => "downloading packages",
            Self::Base => "installing the base system",
            Self::Install => "installing packages",
            Self::Strip => "stripping the tree",
            Self::Image => "writing the image",
            Self::Scratch => "writing the scratch disk",
            Self::Store => "storing the image",
        })
    }
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// What it is doing.
    pub step: Step,
    /// How much of the step is done, from 0 to 1, where that is known.
    pub fraction: Option<f32>,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fraction {
            Some(fraction) => write!(f, "{} ({:.0} %)", self.step, fraction * 100.0),
            None => write!(f, "{}", self.step),
        }
    }
}

/// Reads mmdebstrap's verbose output, which carries apt's and dpkg's.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    step: Option<Step>,
    /// Packages that apt announced last.
    packages: u32,
    /// Of the step: packages downloaded, and packages unpacked plus packages configured.
    downloaded: u32,
    installed: u32,
}

impl Reader {
    /// Takes a line of output, and returns how far the build is if the line says so.
    pub(crate) fn line(&mut self, line: &str) -> Option<Progress> {
        if let Some(information) = line.strip_prefix("I: ") {
            let step = match information {
                "running apt-get update..." => Step::Lists,
                "downloading packages with apt..." => Step::Download,
                "extracting archives..." => Step::Base,
                "installing remaining packages inside the chroot..." => Step::Install,
                _ if information.starts_with("cleaning package lists") => Step::Strip,
                _ => return None,
            };
            // What is downloaded is what makes the base system; then apt announces anew.
            let packages = if step == Step::Base { self.packages } else { 0 };
            *self = Self { step: Some(step), packages, ..Self::default() };
        } else if let Some(packages) = newly_installed(line) {
            self.packages = packages;
        } else if line.starts_with("Get:") {
            self.downloaded += 1;
        } else if ["Unpacking ", "Setting up "].iter().any(|word| line.starts_with(word)) {
            self.installed += 1;
        } else {
            return None;
        }
        let step = self.step?;
        let (done, all) = match step {
            Step::Download => (self.downloaded, self.packages),
            Step::Base => (self.installed, 2 * self.packages),
            Step::Install => (self.downloaded + self.installed, 3 * self.packages),
            _ => (0, 0),
        };
        let fraction = (all > 0).then(|| (done as f32 / all as f32).min(1.0));
        Some(Progress { step, fraction })
    }
}

/// The number in apt's "0 upgraded, 69 newly installed, …".
fn newly_installed(line: &str) -> Option<u32> {
    let (before, _) = line.split_once(" newly installed")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_mmdebstrap_becomes_progress() {
        let mut reader = Reader::default();
        let mut seen = Vec::new();
        for line in [
            "I: chroot architecture amd64 is equal to the host's architecture",
            "I: running apt-get update...",
            "Get:1 http://mirror.test/debian bookworm InRelease [151 kB]",
            "I: downloading packages with apt...",
            "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.",
            "Get:1 http://mirror.test/debian bookworm/main amd64 dash amd64 0.5 [1 kB]",
            "Get:2 http://mirror.test/debian bookworm/main amd64 bash amd64 5.2 [1 kB]",
            "I: extracting archives...",
            "I: installing essential packages...",
            "Unpacking dash (0.5) ...",
            "Setting up dash (0.5) ...",
            "Unpacking bash (5.2) ...",
            "Setting up bash (5.2) ...",
            "I: installing remaining packages inside the chroot...",
            "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.",
            "Get:1 http://mirror.test/debian bookworm/main amd64 jq amd64 1.6 [1 kB]",
            "Get:2 http://mirror.test/debian bookworm/main amd64 libjq1 amd64 1.6 [1 kB]",
            "Unpacking libjq1:amd64 (1.6) ...",
            "Unpacking jq (1.6) ...",
            "Setting up libjq1:amd64 (1.6) ...",
            "Setting up jq (1.6) ...",
            "I: cleaning package lists and apt cache...",
        ] {
            seen.extend(reader.line(line).map(|progress| progress.to_string()));
        }
        assert_eq!(
            seen,
            [
                "reading package lists",
                "reading package lists",
                "downloading packages",
                "downloading packages (0 %)",
                "downloading packages (50 %)",
                "downloading packages (100 %)",
                "installing the base system (0 %)",
                "installing the base system (25 %)",
                "installing the base system (50 %)",
                "installing the base system (75 %)",
                "installing the base system (100 %)",
                "installing packages",
                "installing packages (0 %)",
                "installing packages (17 %)",
                "installing packages (33 %)",
                "installing packages (50 %)",
                "installing packages (67 %)",
                "installing packages (83 %)",
                "installing packages (100 %)",
                "stripping the tree",
            ]
        );
    }
}
