/* Cabana: machines for C programs. Generated from vmm/capi/src by cbindgen; see docs/c.md. */

#ifndef CABANA_H
#define CABANA_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// What happened to a process.
typedef enum {
  // It runs; `value` is its number in the guest.
  CABANA_EVENT_KIND_STARTED,
  // It wrote `data` to standard output.
  CABANA_EVENT_KIND_STDOUT,
  // It wrote `data` to standard error.
  CABANA_EVENT_KIND_STDERR,
  // It exited; `value` is its status. Nothing comes after.
  CABANA_EVENT_KIND_EXITED,
  // Signal `value` ended it. Nothing comes after.
  CABANA_EVENT_KIND_SIGNALLED,
  // It was ended because its time was over. Nothing comes after.
  CABANA_EVENT_KIND_TIMED_OUT,
  // It runs on in the background without this process: it was left, or somebody else has attached to it.
  // Nothing comes after.
  CABANA_EVENT_KIND_DETACHED,
} cabana_event_kind;

// Makes machines.
typedef struct cabana_engine cabana_engine;

// A TCP port that leads elsewhere.
typedef struct cabana_forward cabana_forward;

// A machine. It starts with its first command; with its last handle and process it stops.
typedef struct cabana_machine cabana_machine;

// A command in a machine.
typedef struct cabana_process cabana_process;

// An event of a process.
typedef struct {
  // What happened.
  cabana_event_kind kind;
  // Bytes that it wrote, good until the next call for this process; not a string.
  const uint8_t *data;
  // How many.
  size_t length;
  // A number, by kind.
  int32_t value;
} cabana_event;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The code of this thread's last failure; it never changes its meaning. NULL if nothing failed. Good until
// the next call on this thread.
const char *cabana_error_code(void);

// One sentence about this thread's last failure, for people. NULL if nothing failed. Good until the next
// call on this thread.
const char *cabana_error_message(void);

// Frees a string that was returned.
//
// # Safety
//
// `text` is NULL or was returned by this library to be freed, once.
void cabana_string_free(char *text);

// An engine, by a JSON object of `home`, `worker`, `scratch` and `in_process`, all optional; NULL for
// defaults.
//
// # Safety
//
// `spec` is NULL or a string.
cabana_engine *cabana_engine_new(const char *spec);

// Frees an engine. Its machines live on until they are freed.
//
// # Safety
//
// `engine` is NULL or an engine that nobody uses any more.
void cabana_engine_free(cabana_engine *engine);

// A machine, by a JSON object (`MachineSpec` of docs/serve.schema.json). Nothing starts yet.
//
// # Safety
//
// `engine` is an engine, `spec` NULL or a string.
cabana_machine *cabana_machine_new(const cabana_engine *engine, const char *spec);

// Starts a machine and waits until it takes commands. 0, or -1.
//
// # Safety
//
// `machine` is a machine.
int cabana_machine_start(const cabana_machine *machine);

// Ends all processes, flushes, and ends the machine. The next command starts it again. 0, or -1.
//
// # Safety
//
// `machine` is a machine.
int cabana_machine_shutdown(const cabana_machine *machine);

// Ends the machine now, as if its power had failed; a start that is under way, too.
//
// # Safety
//
// `machine` is a machine.
void cabana_machine_stop(const cabana_machine *machine);

// Lets an idle machine's processors stand still until its next command. 1 if they do, 0 if a process runs,
// -1 on failure.
//
// # Safety
//
// `machine` is a machine.
int cabana_machine_suspend(const cabana_machine *machine);

// How the machine is: JSON (`MachineStatus`), to be freed.
//
// # Safety
//
// `machine` is a machine.
char *cabana_machine_status(const cabana_machine *machine);

// Waits at most this many milliseconds for what happens to the machine: JSON (`MachineEvent`), to be
// freed. NULL if nothing did. Events since the machine was made wait here, 1,024 at most.
//
// # Safety
//
// `machine` is a machine.
char *cabana_machine_next_event(const cabana_machine *machine,
                                uint32_t milliseconds);

// Frees a machine, which stops unless a process of it is left.
//
// # Safety
//
// `machine` is NULL or a machine that nobody uses any more.
void cabana_machine_free(cabana_machine *machine);

// Starts a command, by a JSON object (`CommandSpec`), and the machine before it if need be.
//
// # Safety
//
// `machine` is a machine, `command` a string.
cabana_process *cabana_machine_exec(const cabana_machine *machine, const char *command);

// All commands in the background: a JSON array (`BackgroundStatus`), to be freed. A command is there whose
// `background` is true.
//
// # Safety
//
// `machine` is a machine.
char *cabana_machine_background(const cabana_machine *machine);

// Goes on with a command in the background, by its number. What it has written meanwhile comes first; whoever
// has been attached to it before is told that it is detached.
//
// # Safety
//
// `machine` is a machine.
cabana_process *cabana_machine_attach(const cabana_machine *machine,
                                      uint64_t background);

// Makes a session, by a JSON object (`SessionSpec`), and starts the machine before if need be: JSON
// (`SessionStatus`), to be freed. A command runs in it whose `session` names it.
//
// # Safety
//
// `machine` is a machine, `spec` a string.
char *cabana_session_create(const cabana_machine *machine, const char *spec);

// Gives a session other limits, all of them, by a JSON object (`SessionLimits`): JSON (`SessionStatus`), to
// be freed.
//
// # Safety
//
// `machine` is a machine, `session` and `limits` are strings.
char *cabana_session_limit(const cabana_machine *machine,
                           const char *session,
                           const char *limits);

// All sessions of a machine: a JSON array (`SessionStatus`), to be freed.
//
// # Safety
//
// `machine` is a machine.
char *cabana_session_list(const cabana_machine *machine);

// Ends a session's processes and deletes what it has. 0, or -1.
//
// # Safety
//
// `machine` is a machine, `session` a string.
int cabana_session_remove(const cabana_machine *machine, const char *session);

// How a machine's network is: JSON (`NetworkStatus`), to be freed.
//
// # Safety
//
// `machine` is a machine.
char *cabana_network_status(const cabana_machine *machine);

// Puts other rules, a JSON object (`PolicySpec`), in place of those of a session, or of the machine itself if
// `session` is NULL. They hold at once, for what is open too. 0, or -1.
//
// # Safety
//
// `machine` is a machine, `session` a string or NULL, `policy` a string.
int cabana_network_policy(const cabana_machine *machine,
                          const char *session,
                          const char *policy);

// Answers a question of a machine's network, which an event told of by its number. `remember` is JSON (`Remember`):
// `"once"`, `"session"` or `"machine"`. 0, or -1.
//
// # Safety
//
// `machine` is a machine, `remember` a string.
int cabana_network_answer(const cabana_machine *machine,
                          uint64_t ask,
                          bool allow,
                          const char *remember);

// Copies a file or a folder of the host's into a session, or into the machine itself if `session` is NULL: JSON
// (`Copied`), to be freed. A `guest` that ends with a slash is a folder to put it in.
//
// # Safety
//
// `machine` is a machine, `session` NULL or a string, `host` and `guest` are strings.
char *cabana_copy_in(const cabana_machine *machine,
                     const char *session,
                     const char *host,
                     const char *guest);

// Copies a file or a folder of a session's, or of the machine's own if `session` is NULL, to the host: JSON
// (`Copied`), to be freed. A `host` that is a folder, or ends with a slash, gets it under its own name.
//
// # Safety
//
// `machine` is a machine, `session` NULL or a string, `guest` and `host` are strings.
char *cabana_copy_out(const cabana_machine *machine,
                      const char *session,
                      const char *guest,
                      const char *host);

// Leads a loopback TCP port of the host's to one of a session's, or of the machine's own if `session` is NULL,
// until it is freed. `port` 0 is any free one, see [`cabana_forward_port`].
//
// # Safety
//
// `machine` is a machine, `session` NULL or a string.
cabana_forward *cabana_forward_new(const cabana_machine *machine,
                                   const char *session,
                                   uint16_t port,
                                   uint16_t guest_port);

// Leads a loopback TCP port of a session's, or of the machine's own if `session` is NULL, to one of the host's,
// until it is freed or the machine ends. `guest_port` 0 is any free one, see [`cabana_forward_port`].
//
// # Safety
//
// `machine` is a machine, `session` NULL or a string.
cabana_forward *cabana_forward_back(const cabana_machine *machine,
                                    const char *session,
                                    uint16_t guest_port,
                                    uint16_t port);

// The port that is listened on. 0 for NULL.
//
// # Safety
//
// `forward` is NULL or a port that leads elsewhere.
uint16_t cabana_forward_port(const cabana_forward *forward);

// Ends a port that leads elsewhere, with its connections.
//
// # Safety
//
// `forward` is NULL or one that nobody uses any more.
void cabana_forward_free(cabana_forward *forward);

// Waits for what happens to a process. 1 and an event; 0 after its end; -1 if it could not be started or
// its machine died.
//
// # Safety
//
// `process` is a process, `into` may be written to.
int cabana_process_next(const cabana_process *process,
                        cabana_event *into);

// What others attach to a process by, once it has started; 0 if it is not in the background.
//
// # Safety
//
// `process` is a process, for which no call of `cabana_process_next` waits.
uint64_t cabana_process_background(const cabana_process *process);

// Leaves a process in the background running; its last event is `Detached`. Another one is ended.
//
// # Safety
//
// `process` is a process.
void cabana_process_detach(const cabana_process *process);

// Gives a process input; waits while it takes none. 1, or 0 if it takes no more.
//
// # Safety
//
// `process` is a process, `data` has `length` bytes.
int cabana_process_write(const cabana_process *process, const uint8_t *data, size_t length);

// Ends a process's input.
//
// # Safety
//
// `process` is a process.
void cabana_process_close_stdin(const cabana_process *process);

// Sends a Linux signal to a process's group.
//
// # Safety
//
// `process` is a process.
void cabana_process_signal(const cabana_process *process, int signal);

// Says that a process's terminal has a new size.
//
// # Safety
//
// `process` is a process.
void cabana_process_resize(const cabana_process *process, uint16_t rows, uint16_t columns);

// Ends a process by hanging up, unless it is in the background; a call that waits for it returns.
//
// # Safety
//
// `process` is a process.
void cabana_process_hang_up(const cabana_process *process);

// Frees a process; one that still runs is hung up, or runs on in the background.
//
// # Safety
//
// `process` is NULL or a process that nobody uses any more.
void cabana_process_free(cabana_process *process);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* CABANA_H */
