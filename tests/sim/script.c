/* Scripted scenarios: a few commands with times, on a network without jitter; what is written is the
 * story that scenarios/\*.txt hold as expected. The language: README.md. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum { MAX_WORDS = 12 };

struct script {
    struct world *world;
    int line;
    char *words[MAX_WORDS];
    int word_count;
};

static void (*shown)(void *context, const char *text);

/* The census and the peers' own logs say nothing that is not said elsewhere. */
static void show(void *context, const char *text) {
    if (strstr(text, ": log: ") == NULL && strstr(text, ": CENSUS ") == NULL) {
        shown(context, text);
    }
}

static noreturn void bad(struct script *script, const char *what) {
    violate(script->world, 0, "line %d of the scenario: %s", script->line, what);
}

static int host_named(struct script *script, const char *name) {
    if (strcmp(name, "master") == 0) {
        return 0;
    }
    if (name[0] < 'a' || name[0] >= 'a' + MAX_HOSTS - 1 || name[1] != '\0') {
        bad(script, "peers are named a, b, c ...; there is one master");
    }
    return name[0] - 'a' + 1;
}

static struct process *process_named(struct script *script, const char *name) {
    int index = script->world->at_host[host_named(script, name)];
    if (index < 0) {
        bad(script, "nothing runs there");
    }
    return script->world->processes[index];
}

/* The number of an argument such as tag=5, or `otherwise`. */
static uint64_t argument(const struct script *script, const char *name, uint64_t otherwise) {
    size_t length = strlen(name);
    for (int i = 1; i < script->word_count; i++) {
        if (strncmp(script->words[i], name, length) == 0 && script->words[i][length] == '=') {
            return strtoull(script->words[i] + length + 1, NULL, 10);
        }
    }
    return otherwise;
}

static bool flag(const struct script *script, const char *name) {
    for (int i = 1; i < script->word_count; i++) {
        if (strcmp(script->words[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static void call_op(struct script *script, struct process *process) {
    struct call *call = user_call(process, CALL_OP);
    call->tag = argument(script, "tag", 0);
    call->blocking = !flag(script, "async");
    call->descriptor.kind = OP_ALL_REDUCE;
    call->descriptor.datatype = pcclInt64;
    call->descriptor.early = flag(script, "early");
    call->descriptor.reduce_op = flag(script, "max") ? pcclMax : pcclSum;
    call->descriptor.count = argument(script, "count", 16);
    if (call->descriptor.count < 1 || call->descriptor.count > MAX_CALL_ELEMENTS) {
        bad(script, "count is out of range");
    }
    user_issue(process, call, argument(script, "bound", 0) * MILLISECOND);
}

static bool user_command(struct script *script, struct process *process, const char *verb) {
    static const struct {
        const char *name;
        uint8_t vote;
    } votes[] = {{"update_topology", VOTE_UPDATE_TOPOLOGY},
                 {"are_peers_pending", VOTE_PEERS_PENDING},
                 {"optimize_topology", VOTE_OPTIMIZE_TOPOLOGY}};
    for (size_t i = 0; i < sizeof votes / sizeof votes[0]; i++) {
        if (strcmp(verb, votes[i].name) == 0) {
            struct call *call = user_call(process, CALL_VOTE);
            call->vote = votes[i].vote;
            user_issue(process, call, 0);
            return true;
        }
    }
    if (strcmp(verb, "connect") == 0) {
        user_issue(process, user_call(process, CALL_CONNECT), 0);
    } else if (strcmp(verb, "close") == 0) {
        user_issue(process, user_call(process, CALL_CLOSE), 0);
    } else if (strcmp(verb, "all_reduce") == 0) {
        call_op(script, process);
    } else {
        return false;
    }
    return true;
}

static bool process_command(struct script *script, const char *verb, const char *name) {
    struct world *world = script->world;
    if (strcmp(verb, "start") == 0) {
        uint32_t run = (uint32_t)argument(script, "run", 0);
        if (strcmp(name, "master") == 0) {
            master_start(world, run);
        } else {
            process_start(world, host_named(script, name), (uint32_t)argument(script, "group", 0), run);
        }
    } else if (strcmp(verb, "kill") == 0) {
        process_die(process_named(script, name), false);
    } else if (strcmp(verb, "poweroff") == 0) {
        process_die(process_named(script, name), true);
    } else if (strcmp(verb, "stop") == 0) {
        process_freeze(process_named(script, name));
    } else if (strcmp(verb, "continue") == 0) {
        process_resume(process_named(script, name));
    } else {
        return false;
    }
    return true;
}

static void reset_between(struct script *script, int a, int b) {
    for (struct conn *conn = script->world->conns; conn != NULL; conn = conn->next) {
        int from = conn->ends[0].process->host, to = conn->ends[1].process->host;
        if (((from == a && to == b) || (from == b && to == a)) && conn->ends[0].open && conn->ends[1].open) {
            conn_reset(script->world, conn, "connection reset");
            return;
        }
    }
    bad(script, "there is no connection to reset");
}

static bool network_command(struct script *script) {
    struct world *world = script->world;
    const char *verb = script->words[0];
    if (script->word_count != 3) {
        return false;
    }
    bool block = strcmp(verb, "block") == 0, cut = strcmp(verb, "cut") == 0;
    bool heal = strcmp(verb, "heal") == 0;
    if (strcmp(verb, "reset") != 0 && !block && !cut && !heal) {
        return false;
    }
    int a = host_named(script, script->words[1]), b = host_named(script, script->words[2]);
    if (block || cut) {
        world->blocked[a][b] = 1;
        world->blocked[b][a] |= cut;
    } else if (heal) {
        world->blocked[a][b] = world->blocked[b][a] = 0;
        net_unblock(world);
    } else {
        reset_between(script, a, b);
    }
    return true;
}

static void each_name(struct script *script, char *names, const char *verb, bool of_user) {
    for (char *save = NULL, *name = strtok_r(names, ",", &save); name != NULL;
         name = strtok_r(NULL, ",", &save)) {
        bool known = of_user ? user_command(script, process_named(script, name), verb)
                             : process_command(script, verb, name);
        if (!known) {
            bad(script, "there is no such command");
        }
    }
}

static void command(struct script *script) {
    struct world *world = script->world;
    char **words = script->words;
    if (strcmp(words[0], "wait") == 0 && script->word_count == 2) {
        world_loop(world, world->now + strtoull(words[1], NULL, 10) * MILLISECOND);
    } else if (strcmp(words[0], "set") == 0) {
        world->eager_op_bytes = argument(script, "eager", world->eager_op_bytes);
        world->streams = (uint16_t)argument(script, "streams", world->streams);
        world->straggler_ns = argument(script, "straggler", 0) * MILLISECOND;
    } else if (network_command(script)) {
        return;
    } else if (script->word_count >= 2 && strchr("sckp", words[0][0]) != NULL && words[0][1] != '\0' &&
               words[0][1] != ',') {
        each_name(script, words[1], words[0], false);
    } else if (script->word_count >= 2) {
        each_name(script, words[0], words[1], true);
    } else {
        bad(script, "there is no such command");
    }
}

static void split(struct script *script, char *line) {
    line[strcspn(line, "#\r\n")] = '\0';
    script->word_count = 0;
    for (char *save = NULL, *word = strtok_r(line, " \t", &save);
         word != NULL && script->word_count < MAX_WORDS; word = strtok_r(NULL, " \t", &save)) {
        script->words[script->word_count++] = word;
    }
}

static void prepare(struct world *world) {
    struct sim_options options = {.seed = 1, .trace = true, .no_jitter = true};
    world_prepare(world, &options);
    world->scripted = true;
    world->hosts = MAX_HOSTS - 1;
    world->timeout_ns = SECOND;
    world->latency_ns = MILLISECOND;
    world->jitter_ns = 0;
    world->streams = 1;
    world->eager_op_bytes = 4096;
    world->eager_window_bytes = 1 << 20;
    world->straggler_ns = 0;
    world->skewed = world->faultless = world->wrong_users = world->uneven_timeouts = false;
    world->end_round = world->calm_round = world->vote_event = NEVER;
}

int script_run(const char *path, void (*line)(void *context, const char *text), void *context) {
    static struct world world;
    static char text[256];
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        perror(path);
        return 2;
    }
    prepare(&world);
    shown = line;
    trace_set_output(show, context);
    struct script script = {.world = &world};
    if (setjmp(world.escape) == 0) {
        master_start(&world, 0);
        while (fgets(text, sizeof text, file) != NULL && strncmp(text, "---", 3) != 0) {
            script.line++;
            split(&script, text);
            if (script.word_count > 0) {
                command(&script);
            }
        }
    }
    fclose(file);
    bool failed = world.result.failed;
    world_release(&world);
    return failed ? 1 : 0;
}
