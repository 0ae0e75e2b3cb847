// What a proxy auto-configuration script may call, after Netscape's description of 1996, and the functions for IPv6 that
// Windows added. From the host come `dnsResolveEx` and `myIpAddressEx`, every address, apart by semicolons, and `isWithin`.

function isPlainHostName(host) {
    return !host.includes(".") && !host.includes(":");
}

function dnsDomainIs(host, domain) {
    return host.length >= domain.length && host.endsWith(domain);
}

function localHostOrDomainIs(host, name) {
    return host === name || (isPlainHostName(host) && name.startsWith(host + "."));
}

function dnsDomainLevels(host) {
    return host.split(".").length - 1;
}

function isResolvable(host) {
    return dnsResolve(host) !== null;
}

function isResolvableEx(host) {
    return dnsResolveEx(host) !== "";
}

// The first IPv4 address.
function dnsResolve(host) {
    return dnsResolveEx(host).split(";").find(isIPv4) ?? null;
}

function myIpAddress() {
    return myIpAddressEx().split(";").find(isIPv4) ?? "127.0.0.1";
}

function isIPv4(text) {
    const parts = text.split(".");
    return parts.length === 4 && parts.every((part) => /^\d{1,3}$/.test(part) && Number(part) < 256);
}

function convert_addr(text) {
    return text.split(".").reduce((number, part) => ((number << 8) | (part & 255)) >>> 0, 0);
}

function isInNet(host, pattern, mask) {
    const address = isIPv4(host) ? host : dnsResolve(host);
    if (address === null || !isIPv4(pattern) || !isIPv4(mask)) {
        return false;
    }
    return (convert_addr(address) & convert_addr(mask)) === (convert_addr(pattern) & convert_addr(mask));
}

// `prefix` is a network such as 2001:db8::/32 or 10.0.0.0/8.
function isInNetEx(host, prefix) {
    return dnsResolveEx(host).split(";").some((address) => isWithin(address, prefix));
}

// `*` is anything, `?` any character; everything else is itself.
function shExpMatch(text, pattern) {
    const escaped = String(pattern).replace(/[.+^${}()|[\]\\\/]/g, "\\$&");
    const expression = escaped.replace(/\*/g, ".*").replace(/\?/g, ".");
    return new RegExp("^" + expression + "$", "s").test(text);
}

const WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
const MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];

// The moment in the zone that the last word asks for, as a list of numbers, and the words before it.
function nowAs(words) {
    const list = Array.from(words);
    const gmt = list[list.length - 1] === "GMT";
    if (gmt) {
        list.pop();
    }
    const now = new Date();
    const read = (part) => (gmt ? now["getUTC" + part]() : now["get" + part]());
    return { list, read };
}

// Whether `now` lies from `first` to `last`, over the turn of the week, the year or the day if need be.
function isFromTo(first, now, last) {
    return first <= last ? first <= now && now <= last : first <= now || now <= last;
}

function weekdayRange() {
    const { list, read } = nowAs(arguments);
    const [first, last] = [list[0], list[1] ?? list[0]].map((day) => WEEKDAYS.indexOf(day));
    return first >= 0 && last >= 0 && isFromTo(first, read("Day"), last);
}

// Days, months and years, alone or together, once or as first and last.
function dateRange() {
    const { list, read } = nowAs(arguments);
    const kind = (word) => (MONTHS.includes(word) ? "month" : word > 31 ? "year" : "day");
    const middle = list.length / 2;
    const half = middle >= 1 && middle in list && kind(list[0]) === kind(list[middle]) ? middle : list.length;
    const number = (words, known) => {
        let [year, month, day] = [0, 0, 0];
        for (const word of words) {
            switch (kind(word)) {
                case "year": year = Number(word); break;
                case "month": month = MONTHS.indexOf(word) + 1; break;
                default: day = Number(word);
            }
        }
        return (known.year ? year : 0) * 10000 + (known.month ? month : 0) * 100 + (known.day ? day : 0);
    };
    const first = list.slice(0, half);
    const last = half < list.length ? list.slice(half) : first;
    const known = Object.fromEntries(first.map((word) => [kind(word), true]));
    const today = [read("FullYear"), MONTHS[read("Month")], read("Date")];
    return isFromTo(number(first, known), number(today, known), number(last, known));
}

// Hours; hours and minutes; or hours, minutes and seconds; once or as first and last.
function timeRange() {
    const { list, read } = nowAs(arguments);
    const now = (read("Hours") * 60 + read("Minutes")) * 60 + read("Seconds");
    const at = (hour, minute, second) => (hour * 60 + minute) * 60 + second;
    switch (list.length) {
        case 1: return read("Hours") === list[0];
        case 2: return isFromTo(list[0], read("Hours"), list[1]);
        case 4: return isFromTo(at(list[0], list[1], 0), now, at(list[2], list[3], 59));
        case 6: return isFromTo(at(list[0], list[1], list[2]), now, at(list[3], list[4], list[5]));
        default: return false;
    }
}

// As they come: the host's resolver has sorted them.
function sortIpAddressList(list) {
    return list;
}

function getClientVersion() {
    return "1.0";
}

function alert() {}
