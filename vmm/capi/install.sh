#!/bin/sh
# install.sh PREFIX [BUILT]: puts header, libraries and pkg-config file below PREFIX, from the folder
# BUILT in which cargo has put the libraries (target/release).
set -eu
prefix=$1
here=$(cd "$(dirname "$0")" && pwd)
built=${2:-$here/../../target/release}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -1)
mkdir -p "$prefix/include" "$prefix/lib/pkgconfig"
install -m 644 "$here/include/cabana.h" "$prefix/include/"
install -m 755 "$built/libcabana.so" "$prefix/lib/"
if [ -e "$built/libcabana.a" ]; then install -m 644 "$built/libcabana.a" "$prefix/lib/"; fi
sed "s|@PREFIX@|$prefix|; s|@VERSION@|$version|" "$here/cabana.pc.in" > "$prefix/lib/pkgconfig/cabana.pc"
