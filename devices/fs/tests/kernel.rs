//! The server under a real Linux kernel: this machine's own, through /dev/fuse in place of the
//! virtio queues, in a mount namespace that vanishes with its shell. Needs root; is skipped, and
//! says so, without.

#![cfg(unix)]

mod client;

use std::process::Command;

use client::mount::run;

fn check(script: &str) {
    let folder = tempfile::tempdir().unwrap();
    if let Some(output) = run(folder.path(), script) {
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    }
}

#[test]
fn every_open_sees_the_host() {
    check(
        r#"
        same() { [ "$(cat "$1")" = "$2" ] || { echo "round $i: $1: $(cat "$1"), not $2"; exit 1; }; }
        for i in $(seq 200); do
            content="$i $(printf "%$((i * 37 % 100))s" x)"
            echo "$content" > "$HOST/file"; same file "$content"        # in place: grows, shrinks
            same file "$content"                                         # cached
            if [ $((i % 10)) = 0 ]; then sleep 0.05; same file "$content"; fi
            echo "replaced $i" > "$HOST/new"; mv "$HOST/new" "$HOST/file"; same file "replaced $i"
            rm "$HOST/file"; if cat file 2>/dev/null; then echo "round $i: still there"; exit 1; fi
        done
        "#,
    );
}

#[test]
fn the_host_sees_every_write() {
    check(
        r#"
        for i in $(seq 200); do
            echo "line $i" >> log; [ "$(tail -n 1 "$HOST/log")" = "line $i" ]
            echo "$i" > own; [ "$(cat "$HOST/own")" = "$i" ]
            mv own renamed; [ "$(cat "$HOST/renamed")" = "$i" ]; [ ! -e "$HOST/own" ]
        done
        [ "$(wc -l < "$HOST/log")" = 200 ]
        "#,
    );
}

#[test]
fn what_the_host_removes_and_makes_anew_is_found() {
    check(
        r#"
        for i in $(seq 50); do
            mkdir "$HOST/dir"; echo "$i" > "$HOST/dir/file"; [ "$(cat dir/file)" = "$i" ]
            rm -r "$HOST/dir"; mkdir "$HOST/dir"; echo "again $i" > "$HOST/dir/file"
            [ "$(cat dir/file)" = "again $i" ]
            rm -r "$HOST/dir"
        done
        "#,
    );
}

#[test]
fn a_running_program_is_not_cut() {
    check(
        r#"
        cp "$(command -v sleep)" program; ./program 20 & running=$!
        until [ "$(readlink /proc/$running/exe)" = "$PWD/program" ]; do sleep 0.01; done
        if perl -MFcntl -e 'sysopen(F, "program", O_RDONLY | O_TRUNC) or exit 1'; then exit 1; fi
        cmp program "$(command -v sleep)"
        kill $running; wait $running || true
        perl -MFcntl -e 'sysopen(F, "program", O_RDONLY | O_TRUNC) or exit 1'; [ ! -s program ]
        "#,
    );
}

#[test]
fn git_works() {
    if Command::new("git").arg("--version").output().is_err() {
        eprintln!("skipped: there is no git");
        return;
    }
    check(
        r#"
        git init -q -b main one; cd one
        git config user.email a@example.org; git config user.name a
        for i in $(seq 100); do echo $i > file$i; done
        git add .; git commit -q -m one
        git checkout -q -b side; git rm -q file1; git commit -q -m two
        git checkout -q main; echo x > file2; git commit -q -a -m three
        git checkout -q side; git rebase -q main; git gc -q; git fsck
        [ -z "$(git status --short)" ]
        git worktree add -q ../tree main; git -C ../tree log -1
        git clone -q . ../clone; [ "$(git -C ../clone rev-list --count HEAD)" = 3 ]
        cd ..; rm -rf one tree clone; [ -z "$(ls)" ]
        "#,
    );
}

#[test]
fn trees_links_and_modes_survive() {
    check(
        r#"
        umask 027
        mkdir -p tree/sub; echo x > tree/sub/file; ln -s ../.. tree/sub/up; ln tree/sub/file tree/hard
        mkfifo tree/fifo; cp /bin/sh tree/program; chmod 751 tree/program; truncate -s 1M tree/sparse
        for i in $(seq 300); do echo $i > "tree/sub/a long enough name of a file, number $i"; done
        tar cf - tree | (mkdir copy; cd copy; tar xf -)
        diff -r --no-dereference -x fifo tree copy/tree
        [ "$(stat -c %a%h copy/tree/program copy/tree/hard | tr '\n' ' ')" = "7511 6402 " ]
        [ "$(stat -c %a "$HOST/tree/program")" = 751 ]
        tree/program -c 'exit 3' || [ $? = 3 ]
        chmod u+s tree/program; [ "$(stat -c %a "$HOST/tree/program")" = 751 ]
        [ "$(stat -c %i tree/hard)" = "$(stat -c %i tree/sub/file)" ]
        [ "$(ls tree/sub | wc -l)" = 302 ]
        flock held sh -c 'if flock -n held true; then exit 1; fi'
        exec 3<> gone; rm gone; echo late >&3; [ "$(cat /proc/$$/fd/3)" = late ]
        rm -r tree copy; [ "$(ls)" = held ]
        "#,
    );
}
