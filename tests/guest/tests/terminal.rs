//! `cabana run -it`: the command has a terminal, and it is the user's.

use cabana_test_guest::{Terminal, host};

#[test]
fn a_shell_at_a_terminal() {
    let Some(host) = host() else { return };
    let mut terminal = Terminal::new(24, 80);
    let call = host.cabana(["run", "-it", "--", "bash", "--norc"]).env("TERM", "vt220");
    let running = terminal.start(call.env("PS1", "unused"));
    terminal.wait_for("# ");
    assert!(!terminal.is_cooked(), "keys would be echoed twice");

    terminal.type_in("stty size; echo $TERM; tty\n");
    terminal.wait_for("24 80\r\n");
    terminal.wait_for("vt220\r\n");
    terminal.wait_for("/dev/pts/0\r\n");

    terminal.resize(50, 132);
    terminal
        .type_in("until test \"$(stty size)\" = '50 132'; do sleep 0.1; done; echo re''sized\n");
    terminal.wait_for("resized\r\n");

    // ^C ends the command and not the shell.
    terminal.type_in("sh -c 'echo be\"\"fore; exec sleep 1000'\n");
    terminal.wait_for("before\r\n");
    terminal.type_in("\x03");
    terminal.wait_for("# ");
    terminal.type_in("echo after $((40 + 2)) $?\n");
    terminal.wait_for("after 42 130\r\n");

    terminal.type_in("exit 5\n");
    assert_eq!(running.end().status(), 5);
    assert!(terminal.is_cooked(), "the terminal was not given back");
}

#[test]
fn a_terminal_is_not_made_out_of_nothing() {
    let Some(host) = host() else { return };
    host.cabana(["run", "-t", "--", "true"]).end().failed_with(125, &["no terminal", "-t"]);
}
