//! Sizes, times, shares and disks as people write them.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use cabana_journal::Limits;
use cabana_sandbox::Publish;

/// A folder for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShareArg {
    pub(crate) host: PathBuf,
    /// `None`: the same path as on the host.
    pub(crate) guest: Option<String>,
    pub(crate) read_only: bool,
    /// The bytes that its journal may take, if it has one.
    pub(crate) journal: Option<u64>,
}

/// A disk image for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskArg {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
}

/// Bytes: a number, with K, M, G or T for binary multiples.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|unit: char| !unit.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        unit => return Err(format!("{unit} is no unit; use K, M, G or T, as in 512M")),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number, as in 512M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is too much".to_owned())
}

/// A time: a number with ms, s, m or h; seconds if without.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|unit: char| !unit.is_ascii_digit());
    let milliseconds = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => return Err(format!("{unit} is no unit; use ms, s, m or h, as in 30s")),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number, as in 30s".to_owned())?;
    let total = number.checked_mul(milliseconds).ok_or_else(|| "that is too long".to_owned())?;
    Ok(Duration::from_millis(total))
}

/// `HOST[:GUEST][:ro|:journal[=SIZE]]`.
pub(crate) fn share(text: &str) -> Result<ShareArg, String> {
    let (rest, read_only) = read_only(text);
    let (rest, journal) = journal(rest)?;
    if read_only && journal.is_some() {
        return Err("a read-only folder needs no journal".to_owned());
    }
    let (host, guest) = match split_path(rest) {
        Some((host, guest)) => (host, Some(guest)),
        None => (rest, None),
    };
    if host.is_empty() {
        return Err("name a folder of the host".to_owned());
    }
    if let Some(guest) = guest
        && (!guest.starts_with('/') || guest.contains(':'))
    {
        return Err(format!("{guest} is not an absolute path in the guest"));
    }
    Ok(ShareArg { host: host.into(), guest: guest.map(str::to_owned), read_only, journal })
}

/// What stands before and behind the first colon that belongs to no drive's letter, as Windows' paths begin with.
pub(crate) fn split_path(text: &str) -> Option<(&str, &str)> {
    let drive = match Path::new(text).components().next() {
        Some(Component::Prefix(prefix)) => prefix.as_os_str().len(),
        _ => 0,
    };
    let (before, behind) = text.get(drive..)?.split_once(':')?;
    Some((&text[..drive + before.len()], behind))
}

/// What stands before `:journal[=SIZE]`, and the size, if that is there.
fn journal(text: &str) -> Result<(&str, Option<u64>), String> {
    match text.rsplit_once(':') {
        Some((rest, "journal")) => Ok((rest, Some(Limits::default().bytes))),
        Some((rest, option)) => match option.strip_prefix("journal=") {
            Some(bytes) => Ok((rest, Some(size(bytes)?))),
            None => Ok((text, None)),
        },
        None => Ok((text, None)),
    }
}

/// A moment of a journal: the number of a record, `@SECONDS` since 1970, or a time ago (10m, 2h).
pub(crate) fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(number) = text.parse() {
        return Ok(Moment::Record(number));
    }
    if let Some(seconds) = text.strip_prefix('@') {
        let seconds =
            seconds.parse().map_err(|_| "write a number, as in @1700000000".to_owned())?;
        return Ok(Moment::At(Duration::from_secs(seconds)));
    }
    duration(text).map(Moment::Ago)
}

/// A moment of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// After this record.
    Record(u64),
    /// This long since 1970.
    At(Duration),
    /// This long ago.
    Ago(Duration),
}

/// `[ADDRESS:]PORT:GUEST`, on the loopback address unless another is given. Port 0 of the host is any free one.
pub(crate) fn publish(text: &str) -> Result<Publish, String> {
    let wanted = || format!("{text} is not [ADDRESS:]PORT:GUEST, as in 8080:80 or 0.0.0.0:8080:80");
    let (host, guest) = text.rsplit_once(':').ok_or_else(wanted)?;
    let guest: NonZeroU16 = guest.parse().map_err(|_| wanted())?;
    let host = match host.parse() {
        Ok(port) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
        Err(_) => host.parse().map_err(|_| wanted())?,
    };
    Ok(Publish { host, guest: guest.get() })
}

/// `GUEST:[ADDRESS:]PORT`, of the loopback address unless another is given. Port 0 of the guest is any free one.
pub(crate) fn back(text: &str) -> Result<Publish, String> {
    let wanted =
        || format!("{text} is not GUEST:[ADDRESS:]PORT, as in 5432:5432 or 80:10.0.0.7:8080");
    let (guest, host) = text.split_once(':').ok_or_else(wanted)?;
    let guest = guest.parse().map_err(|_| wanted())?;
    let host = match host.parse::<NonZeroU16>() {
        Ok(port) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.get()),
        Err(_) => host.parse().map_err(|_| wanted())?,
    };
    Ok(Publish { host, guest })
}

/// Processors: a number like 1.5, a hundredth at least.
pub(crate) fn processors(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.01..=1000.0).contains(&number) => Ok(number),
        _ => Err("write a number of processors from 0.01 on, as in 1.5".to_owned()),
    }
}

/// `FILE[:ro]`.
#[allow(clippy::unnecessary_wraps, reason = "the shape of a parser")]
pub(crate) fn disk(text: &str) -> Result<DiskArg, String> {
    let (path, read_only) = read_only(text);
    Ok(DiskArg { path: path.into(), read_only })
}

fn read_only(text: &str) -> (&str, bool) {
    match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2gib"), Ok(2 << 30));
        for bad in ["", "M", "1X", "-1", "99999999999T", "1.5G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "s", "5d", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn published_ports() {
        let parsed = |text| publish(text).map(|publish| (publish.host.to_string(), publish.guest));
        assert_eq!(parsed("8080:80"), Ok(("127.0.0.1:8080".into(), 80)));
        assert_eq!(parsed("0.0.0.0:1:2"), Ok(("0.0.0.0:1".into(), 2)));
        assert_eq!(parsed("[::1]:1:2"), Ok(("[::1]:1".into(), 2)));
        for bad in ["", "80", "80:", ":80", "80:0", "a:80:80", "::1:80:80", "70000:80"] {
            assert!(publish(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_that_lead_back() {
        let parsed = |text| back(text).map(|back| (back.guest, back.host.to_string()));
        assert_eq!(parsed("5432:5433"), Ok((5432, "127.0.0.1:5433".into())));
        assert_eq!(parsed("0:10.0.0.7:80"), Ok((0, "10.0.0.7:80".into())));
        assert_eq!(parsed("1:[::1]:2"), Ok((1, "[::1]:2".into())));
        for bad in ["", "80", ":80", "80:", "80:0", "80:a:80"] {
            assert!(back(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_of_processors() {
        assert_eq!(processors("1.5"), Ok(1.5));
        for bad in ["", "0", "-1", "x", "inf", "nan"] {
            assert!(processors(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments() {
        assert_eq!(moment("17"), Ok(Moment::Record(17)));
        assert_eq!(moment("@17"), Ok(Moment::At(Duration::from_secs(17))));
        assert_eq!(moment("10m"), Ok(Moment::Ago(Duration::from_secs(600))));
        for bad in ["", "@", "yesterday", "-1"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares() {
        let parsed = |text| share(text).map(|share| (share.host, share.guest, share.read_only));
        assert_eq!(parsed("."), Ok((".".into(), None, false)));
        assert_eq!(parsed("ab:/b"), Ok(("ab".into(), Some("/b".into()), false)));
        assert_eq!(parsed("ab:/b:ro"), Ok(("ab".into(), Some("/b".into()), true)));
        assert_eq!(parsed("ab:ro"), Ok(("ab".into(), None, true)));
        assert_eq!(share("ab:ro").unwrap().journal, None);
        assert_eq!(share("ab:journal").unwrap().journal, Some(Limits::default().bytes));
        let sized = share("ab:/b:journal=2G").unwrap();
        assert_eq!((sized.guest.as_deref(), sized.journal), (Some("/b"), Some(2 << 30)));
        for bad in ["", ":/b", "ab:b", "ab:/b:c", "ab:journal:ro", "ab:journal=x", "ab:journal=:/b"]
        {
            assert!(share(bad).is_err(), "{bad}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_name_of_one_letter_is_no_drive() {
        let parsed = |text| share(text).map(|share| (share.host, share.guest, share.read_only));
        assert_eq!(parsed("a:/b"), Ok(("a".into(), Some("/b".into()), false)));
        assert_eq!(parsed("a:/b:ro"), Ok(("a".into(), Some("/b".into()), true)));
        assert_eq!(parsed("a:ro"), Ok(("a".into(), None, true)));
        for bad in ["a:b", "a:/b:c", "a:journal:ro", "a:journal=x", "a:journal=:/b"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }

    #[cfg(windows)]
    #[test]
    fn a_drive_is_part_of_its_path() {
        let parsed = |text| share(text).map(|share| (share.host, share.guest, share.read_only));
        assert_eq!(parsed(r"C:\a:/b:ro"), Ok((r"C:\a".into(), Some("/b".into()), true)));
        assert_eq!(parsed(r"C:\a"), Ok((r"C:\a".into(), None, false)));
        assert_eq!(split_path(r"C:\a"), None);
        assert_eq!(split_path("work:/b"), Some(("work", "/b")));
    }
}
