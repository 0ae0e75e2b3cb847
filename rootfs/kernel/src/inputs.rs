//! What a kernel is made from, as one hash: equal inputs, equal kernel.

use sha2::{Digest, Sha256};

use crate::{Error, Fragment, Options, edits, source, toolchain};

/// Changes whenever this crate builds differently from equal inputs.
const BUILDER: &str = "4";

/// Everything that decides what comes out of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// The source: package and version, or a hash of the tarball.
    pub source: String,
    /// The compiler's and linker's versions.
    pub toolchain: String,
    /// The configuration, in order.
    pub fragments: Vec<Fragment>,
    /// The initialization that is left out.
    pub left_out: Vec<String>,
    /// Whether a bzImage is made too.
    pub bz_image: bool,
}

impl Inputs {
    /// Looks up the inputs of a build with these options.
    pub fn gather(options: &Options) -> Result<Self, Error> {
        Ok(Self {
            source: source::identity(&options.source)?,
            toolchain: toolchain::identity(options.architecture),
            fragments: options.fragments.clone(),
            left_out: options.left_out.clone(),
            bz_image: options.bz_image,
        })
    }

    /// SHA-256 over all inputs and this builder's version, in hexadecimal.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        let mut field = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        field(BUILDER);
        field(&self.source);
        field(&self.toolchain);
        field(if self.bz_image { "bzImage" } else { "vmlinux" });
        for fragment in &self.fragments {
            field(fragment.name());
            field(fragment.text());
        }
        for function in &self.left_out {
            field(function);
        }
        edits::texts().for_each(&mut field);
        format!("{:x}", hash.finalize())
    }
}

/// [`Inputs::gather`] and [`Inputs::hash`] in one: the key under which a cache keeps the kernel.
///
/// It does not depend on the folders or on the number of jobs.
pub fn inputs_hash(options: &Options) -> Result<String, Error> {
    Ok(Inputs::gather(options)?.hash())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Architecture;

    fn inputs() -> Inputs {
        Inputs {
            source: "linux-source-6.12 6.12.100-1".to_owned(),
            toolchain: "gcc 12; ld 2.40".to_owned(),
            fragments: vec![
                Fragment::parse("a", "CONFIG_A=y\n").unwrap(),
                Fragment::parse("b", "CONFIG_B=y\n").unwrap(),
            ],
            left_out: vec!["some_init".to_owned()],
            bz_image: false,
        }
    }

    #[test]
    fn equal_inputs_have_equal_hashes() {
        assert_eq!(inputs().hash(), inputs().hash());
        assert_eq!(inputs().hash().len(), 64);
    }

    #[test]
    fn every_input_changes_the_hash() {
        let changes: [fn(&mut Inputs); 9] = [
            |inputs| inputs.source.push('x'),
            |inputs| inputs.toolchain.push('x'),
            |inputs| inputs.bz_image = true,
            |inputs| inputs.fragments[0] = Fragment::parse("a", "CONFIG_A=n\n").unwrap(),
            |inputs| inputs.fragments[0] = Fragment::parse("z", "CONFIG_A=y\n").unwrap(),
            |inputs| inputs.fragments.swap(0, 1),
            |inputs| drop(inputs.fragments.pop()),
            |inputs| drop(inputs.left_out.pop()),
            // Text that moves from one field to the next.
            |inputs| {
                inputs.source.push_str("gcc");
                inputs.toolchain = inputs.toolchain.replacen("gcc", "", 1);
            },
        ];
        let mut seen = vec![inputs().hash()];
        for change in changes {
            let mut changed = inputs();
            change(&mut changed);
            let hash = changed.hash();
            assert!(!seen.contains(&hash));
            seen.push(hash);
        }
    }

    #[test]
    fn folders_and_jobs_do_not_change_the_hash_but_the_tarball_does() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::new(Architecture::X86_64, "/work", "/out");
        options.source = folder.path().join("linux.tar");
        std::fs::write(&options.source, "one").unwrap();
        let hash = inputs_hash(&options).unwrap();
        let other = Options {
            work: "/elsewhere".into(),
            output: "/there".into(),
            jobs: options.jobs + 7,
            ..options.clone()
        };
        assert_eq!(hash, inputs_hash(&other).unwrap());
        std::fs::write(&options.source, "two").unwrap();
        assert_ne!(hash, inputs_hash(&options).unwrap());
    }
}
