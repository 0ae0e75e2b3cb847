//! The proxies of this host, as the variables in which programs read them: `http_proxy`, `https_proxy`, `all_proxy`,
//! `no_proxy`, and `auto_proxy`, the URL of a script (PAC). Linux has nothing but these variables; Windows and macOS keep
//! proxies in their settings, in words of their own.

use std::env;

use crate::sys;

/// What programs read, in either case, and what says that this is a CGI program.
const VARIABLES: [&str; 11] = [
    "auto_proxy",
    "AUTO_PROXY",
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "REQUEST_METHOD",
];

/// Stands in a list of exceptions for every name without a dot (Windows' own word).
pub const LOCAL: &str = "<local>";

/// The variable of a script's URL.
const AUTO: &str = "auto_proxy";

/// Names of variables and their values.
pub type Variables = Vec<(String, String)>;

/// The proxies of this process's environment or, if it names none, of the system's settings.
pub fn environment() -> Variables {
    let own: Variables = VARIABLES
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?)))
        .collect();
    let named = own.iter().any(|(name, _)| name.to_ascii_lowercase().ends_with("_proxy"));
    if named { own } else { sys::proxies::settings().into_iter().chain(own).collect() }
}

/// Windows' words (`WINHTTP_PROXY_INFO`): `HOST:PORT` for everything or `http=…;https=…;socks=…`, and exceptions
/// such as `*.corp.example;10.*;<local>`, apart by semicolons or spaces. `script` is a script's URL, or empty.
pub fn of_windows(server: &str, bypass: &str, script: &str) -> Variables {
    let apart = |text: &str| -> Vec<String> {
        let words = text.split([';', ' ', '\t']).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let mut variables = Variables::new();
    for word in apart(server) {
        match word.split_once('=') {
            None => {
                variables.push(("http_proxy".to_owned(), word.clone()));
                variables.push(("https_proxy".to_owned(), word));
            }
            Some((kind, server)) => match kind.to_ascii_lowercase().as_str() {
                "http" => variables.push(("http_proxy".to_owned(), server.to_owned())),
                "https" => variables.push(("https_proxy".to_owned(), server.to_owned())),
                "socks" => variables.push(("all_proxy".to_owned(), socks(server))),
                // What nobody has asked for.
                _ => {}
            },
        }
    }
    if !script.is_empty() {
        variables.push((AUTO.to_owned(), script.to_owned()));
    }
    with_exceptions(variables, apart(bypass))
}

/// macOS' words: the dictionary of `SCDynamicStoreCopyProxies`, by its keys (`kSCPropNetProxies…`).
pub fn of_macos(
    number: impl Fn(&str) -> Option<i64>,
    text: impl Fn(&str) -> Option<String>,
    exceptions: Vec<String>,
) -> Variables {
    let mut variables = Variables::new();
    for (kind, name) in [("HTTP", "http_proxy"), ("HTTPS", "https_proxy"), ("SOCKS", "all_proxy")] {
        let enabled = number(&format!("{kind}Enable")) == Some(1);
        let host = text(&format!("{kind}Proxy")).filter(|host| enabled && !host.is_empty());
        let Some(host) = host else { continue };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let server = match number(&format!("{kind}Port")) {
            Some(port) => format!("{host}:{port}"),
            None => host,
        };
        let server = if kind == "SOCKS" { socks(&server) } else { server };
        variables.push((name.to_owned(), server));
    }
    let script = text("ProxyAutoConfigURLString").filter(|script| !script.is_empty());
    if let Some(script) = script.filter(|_| number("ProxyAutoConfigEnable") == Some(1)) {
        variables.push((AUTO.to_owned(), script));
    }
    let mut exceptions = exceptions;
    if number("ExcludeSimpleHostnames") == Some(1) {
        exceptions.push(LOCAL.to_owned());
    }
    with_exceptions(variables, exceptions)
}

/// A SOCKS server of a system's settings, which has no scheme: names are its to look up.
fn socks(server: &str) -> String {
    if server.contains("://") { server.to_owned() } else { format!("socks5h://{server}") }
}

fn with_exceptions(mut variables: Variables, exceptions: Vec<String>) -> Variables {
    if !variables.is_empty() && !exceptions.is_empty() {
        let words: Vec<_> =
            exceptions.into_iter().map(|word| network(&word).unwrap_or(word)).collect();
        variables.push(("no_proxy".to_owned(), words.join(",")));
    }
    variables
}

/// `10.*` and `169.254/16`, which only these systems write, as a network.
fn network(word: &str) -> Option<String> {
    let (digits, bits) = match word.split_once('/') {
        Some((digits, bits)) => (digits, Some(bits.parse::<u8>().ok().filter(|bits| *bits <= 32)?)),
        None => (word.strip_suffix('*')?.trim_end_matches(".*"), None),
    };
    let mut bytes = Vec::new();
    for part in digits.split('.').filter(|part| !part.is_empty() && *part != "*") {
        bytes.push(part.parse::<u8>().ok()?);
    }
    if bytes.is_empty() || bytes.len() > 4 {
        return None;
    }
    let bits = bits.unwrap_or(bytes.len() as u8 * 8);
    bytes.resize(4, 0);
    let words: Vec<_> = bytes.iter().map(u8::to_string).collect();
    Some(format!("{}/{bits}", words.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(variables: &Variables) -> Vec<(&str, &str)> {
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn windows_servers_are_for_all_or_for_each_protocol() {
        let all = of_windows("proxy.example:8080", "", "");
        let expected =
            [("http_proxy", "proxy.example:8080"), ("https_proxy", "proxy.example:8080")];
        assert_eq!(pairs(&all), expected);
        let each = of_windows("http=a:1;HTTPS=https://b:2 ftp=c:3;socks=d:4", "", "");
        let expected =
            [("http_proxy", "a:1"), ("https_proxy", "https://b:2"), ("all_proxy", "socks5h://d:4")];
        assert_eq!(pairs(&each), expected);
        assert_eq!(of_windows("", "*.a.example", ""), []);
        let script = of_windows("", "", "http://wpad.example/p.pac");
        assert_eq!(pairs(&script), [("auto_proxy", "http://wpad.example/p.pac")]);
    }

    #[test]
    fn windows_exceptions_become_names_and_networks() {
        let bypass = "*.corp.example;10.*;192.168.*;172.16.3.*;host.example;<local>;*";
        let variables = of_windows("p:1", bypass, "");
        let expected =
            "*.corp.example,10.0.0.0/8,192.168.0.0/16,172.16.3.0/24,host.example,<local>,*";
        assert_eq!(pairs(&variables)[2], ("no_proxy", expected));
    }

    #[test]
    fn macos_has_a_switch_for_each_proxy() {
        let number = |key: &str| match key {
            "HTTPEnable" | "SOCKSEnable" | "ExcludeSimpleHostnames" | "ProxyAutoConfigEnable" => {
                Some(1)
            }
            "HTTPSEnable" => Some(0),
            "HTTPPort" => Some(3128),
            _ => None,
        };
        let text = |key: &str| match key {
            "HTTPProxy" => Some("2001:db8::1".to_owned()),
            "HTTPSProxy" => Some("off.example".to_owned()),
            "SOCKSProxy" => Some("s.example".to_owned()),
            "ProxyAutoConfigURLString" => Some("file:///p.pac".to_owned()),
            _ => None,
        };
        let exceptions = ["*.local", "169.254/16"].map(str::to_owned).into();
        let variables = of_macos(number, text, exceptions);
        let expected = [
            ("http_proxy", "[2001:db8::1]:3128"),
            ("all_proxy", "socks5h://s.example"),
            ("auto_proxy", "file:///p.pac"),
            ("no_proxy", "*.local,169.254.0.0/16,<local>"),
        ];
        assert_eq!(pairs(&variables), expected);
        assert_eq!(of_macos(|_| None, |_| None, vec!["a".to_owned()]), []);
    }

    #[test]
    fn what_is_no_network_stays_a_name() {
        for word in ["*.example", "a.*", "10.0.0.0.0/8", "10/40", "300.*", "*"] {
            assert_eq!(network(word), None, "{word}");
        }
        assert_eq!(network("10/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(network("10.*.*.*").as_deref(), Some("10.0.0.0/8"));
    }
}
