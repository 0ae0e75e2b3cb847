/* Commands in a machine: one's output as it comes, one that is given input, and one in a session.
 *
 *     cc hello.c $(pkg-config --cflags --libs cabana) -o hello && ./hello
 */

#include <stdio.h>
#include <string.h>

#include <cabana.h>

static int failed(void) {
    fprintf(stderr, "hello: %s (%s)\n", cabana_error_message(), cabana_error_code());
    return 1;
}

/* Prints what a process writes; its exit status, or -1. */
static int follow(cabana_process *process) {
    cabana_event event;
    int more, status = -1;
    while ((more = cabana_process_next(process, &event)) > 0) {
        switch (event.kind) {
        case CABANA_EVENT_KIND_STDOUT:
            fwrite(event.data, 1, event.length, stdout);
            break;
        case CABANA_EVENT_KIND_STDERR:
            fwrite(event.data, 1, event.length, stderr);
            break;
        case CABANA_EVENT_KIND_EXITED:
            status = event.value;
            break;
        default:
            break;
        }
    }
    return more < 0 ? -1 : status;
}

int main(void) {
    cabana_engine *engine = cabana_engine_new(NULL);
    cabana_machine *machine = engine ? cabana_machine_new(engine, "{\"name\":\"hello\"}") : NULL;
    if (!machine)
        return failed();

    /* Nothing has started yet; the first command starts the machine. */
    cabana_process *process = cabana_machine_exec(machine, "{\"argv\":[\"uname\",\"-s\"]}");
    if (!process || follow(process) != 0)
        return failed();
    cabana_process_free(process);

    const char *input = "from C\n";
    process = cabana_machine_exec(machine, "{\"argv\":[\"sh\",\"-c\",\"cat; exit 3\"],\"stdin\":true}");
    if (!process)
        return failed();
    cabana_process_write(process, (const uint8_t *)input, strlen(input));
    cabana_process_close_stdin(process);
    printf("status %d\n", follow(process));
    cabana_process_free(process);

    /* A session is a user of the machine, with limits of its own. */
    char *session = cabana_session_create(machine, "{\"name\":\"chat-1\",\"limits\":{\"pids\":50}}");
    if (!session)
        return failed();
    cabana_string_free(session);
    process = cabana_machine_exec(machine, "{\"argv\":[\"id\",\"-un\"],\"session\":\"chat-1\"}");
    if (!process || follow(process) != 0)
        return failed();
    cabana_process_free(process);
    if (cabana_session_remove(machine, "chat-1"))
        return failed();

    if (cabana_machine_shutdown(machine))
        return failed();
    cabana_machine_free(machine);
    cabana_engine_free(engine);
    return 0;
}
