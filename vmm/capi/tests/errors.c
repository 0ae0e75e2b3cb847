/* What needs no guest: objects, errors, and that nothing leaks or is used after its end (ASan). */

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cabana.h"

static void failed_with(const char *code, const char *words) {
    if (!cabana_error_code() || strcmp(cabana_error_code(), code)) {
        fprintf(stderr, "%s, not %s\n", cabana_error_code(), code);
        exit(1);
    }
    if (!strstr(cabana_error_message(), words)) {
        fprintf(stderr, "\"%s\" does not say \"%s\"\n", cabana_error_message(), words);
        exit(1);
    }
}

int main(void) {
    assert(!cabana_error_code());
    assert(!cabana_engine_new("{"));
    failed_with("invalid", "not understood");
    assert(!cabana_engine_new("{\"hoem\":1}"));
    failed_with("invalid", "hoem");
    cabana_engine *engine = cabana_engine_new(NULL);
    assert(engine);
    assert(!cabana_machine_new(NULL, NULL));
    failed_with("invalid", "engine is NULL");
    assert(!cabana_machine_new(engine, "{\"name\":\"../x\"}"));
    failed_with("invalid", "no name");
    cabana_machine *machine = cabana_machine_new(engine, "{\"name\":\"m\"}");
    assert(machine);
    assert(!cabana_machine_new(engine, "{\"name\":\"m\"}"));
    failed_with("exists", "m already");
    char *status = cabana_machine_status(machine);
    assert(strstr(status, "\"state\":\"idle\""));
    cabana_string_free(status);
    assert(cabana_machine_suspend(machine) == 0);
    assert(!cabana_machine_exec(machine, "{\"argv\":[\"true\"]}"));
    failed_with("store", "default");
    char *event = cabana_machine_next_event(machine, 1000);
    assert(strstr(event, "\"kind\":\"starting\""));
    cabana_string_free(event);
    event = cabana_machine_next_event(machine, 1000);
    assert(strstr(event, "\"kind\":\"died\""));
    cabana_string_free(event);
    assert(!cabana_machine_next_event(machine, 0));
    assert(!cabana_session_create(machine, "{\"naem\":\"s\"}"));
    failed_with("invalid", "naem");
    assert(!cabana_session_create(machine, "{\"name\":\"s\"}"));
    failed_with("store", "default");
    status = cabana_session_list(machine);
    assert(strcmp(status, "[]") == 0);
    cabana_string_free(status);
    assert(!cabana_session_limit(machine, "s", "{}"));
    failed_with("not-found", "session s");
    assert(cabana_session_remove(machine, "s") == -1);
    failed_with("not-found", "session s");
    assert(!cabana_copy_in(machine, NULL, "/no/such/file", "/x"));
    failed_with("open", "/no/such/file");
    assert(!cabana_copy_out(machine, "s", "/x", "/tmp"));
    failed_with("not-found", "session s");
    assert(!cabana_forward_new(machine, "\xff", 0, 80));
    failed_with("invalid", "UTF-8");
    /* Nothing is started before somebody connects. */
    cabana_forward *forward = cabana_forward_new(machine, NULL, 0, 80);
    assert(forward && cabana_forward_port(forward) != 0);
    cabana_forward_free(forward);
    assert(!cabana_forward_back(machine, NULL, 0, 80));
    failed_with("store", "default");
    assert(cabana_process_next(NULL, NULL) == -1);
    cabana_engine_free(engine);
    assert(cabana_machine_shutdown(machine) == 0);
    cabana_machine_free(machine);
    cabana_machine_free(NULL);
    cabana_string_free(NULL);
    return 0;
}
