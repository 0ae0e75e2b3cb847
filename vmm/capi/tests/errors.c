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
    assert(cabana_process_next(NULL, NULL) == -1);
    cabana_engine_free(engine);
    assert(cabana_machine_shutdown(machine) == 0);
    cabana_machine_free(machine);
    cabana_machine_free(NULL);
    cabana_string_free(NULL);
    return 0;
}
