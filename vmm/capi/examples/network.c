/* A machine whose network asks: a connection is held until this program has answered, rules change, a server is heard of.
 *
 *     cc network.c $(pkg-config --cflags --libs cabana) -o network && ./network
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cabana.h>

static int failed(void) {
    fprintf(stderr, "network: %s (%s)\n", cabana_error_message(), cabana_error_code());
    return 1;
}

/* Waits for an event with these words in it, and gives its JSON, to be freed. A real program has a parser. */
static char *wait_for(cabana_machine *machine, const char *words) {
    char *event;
    while ((event = cabana_machine_next_event(machine, 120000))) {
        if (strstr(event, words))
            return event;
        cabana_string_free(event);
    }
    return NULL;
}

static int status_of(cabana_process *process) {
    cabana_event event;
    int more, status = -1;
    while ((more = cabana_process_next(process, &event)) > 0)
        if (event.kind == CABANA_EVENT_KIND_EXITED)
            status = event.value;
    cabana_process_free(process);
    return more < 0 ? -1 : status;
}

int main(void) {
    cabana_engine *engine = cabana_engine_new(NULL);
    cabana_machine *machine = engine
        ? cabana_machine_new(engine, "{\"name\":\"asks\",\"network\":{\"policy\":{\"ask\":true}}}")
        : NULL;
    if (!machine)
        return failed();

    /* No rule speaks of it, so it is held. */
    cabana_process *process = cabana_machine_exec(machine,
        "{\"argv\":[\"python3\",\"-c\",\"import socket; socket.create_connection(('198.51.100.7', 80))\"]}");
    char *event = process ? wait_for(machine, "\"what\":\"ask\"") : NULL;
    const char *ask = event ? strstr(event, "\"ask\":") : NULL;
    while (ask && (ask[6] < '0' || ask[6] > '9'))
        ask = strstr(ask + 1, "\"ask\":");
    if (!ask || cabana_network_answer(machine, strtoull(ask + 6, NULL, 10), false, "\"machine\""))
        return failed();
    cabana_string_free(event);
    printf("asked, answered no: status %d\n", status_of(process));

    /* Other rules hold at once. */
    if (cabana_network_policy(machine, NULL, "{\"allow\":[\"pypi\"]}"))
        return failed();
    char *status = cabana_network_status(machine);
    if (!status)
        return failed();
    printf("policy %s pypi\n", strstr(status, "\"version\":2") && strstr(status, "\"pypi\"") ? "2 allows" : status);
    cabana_string_free(status);

    /* A server is news, by its address and port. */
    process = cabana_machine_exec(machine, 
        "{\"argv\":[\"python3\",\"-c\",\"import socket; socket.create_server(('', 8000)).accept()\"]}");
    event = process ? wait_for(machine, "\"what\":\"listening\"") : NULL;
    if (!event)
        return failed();
    printf("%s\n", strstr(event, "\"port\":8000") ? "somebody listens on port 8000" : event);
    cabana_string_free(event);
    cabana_process_free(process);

    cabana_machine_shutdown(machine);
    cabana_machine_free(machine);
    cabana_engine_free(engine);
    return 0;
}
