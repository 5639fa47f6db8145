#include "net/state_compare.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "data/datatype.h"

enum { MAX_DIFFERENCES = 5, SHOWN_NAME_BYTES = 60 };

__attribute__((format(printf, 2, 3))) static void append(struct state_compare *compare, const char *format,
                                                         ...) {
    size_t used = strlen(compare->text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(compare->text + used, sizeof compare->text - used, format, arguments);
    va_end(arguments);
}

void state_compare_init(struct state_compare *compare, const struct state_table *table, const char *mine,
                        const char *theirs) {
    *compare = (struct state_compare){.table = table, .mine = mine, .theirs = theirs};
    append(compare, "the shared states of peers %s and %s list different tensors", theirs, mine);
}

bool state_compare_is_full(const struct state_compare *compare) {
    return compare->differences > MAX_DIFFERENCES;
}

/* Begins the next difference; false if there is no room for more. */
static bool begin_difference(struct state_compare *compare) {
    compare->differences++;
    if (compare->differences <= MAX_DIFFERENCES) {
        append(compare, compare->differences == 1 ? ": " : "; ");
        return true;
    }
    if (compare->differences == MAX_DIFFERENCES + 1) {
        append(compare, "; and more");
    }
    return false;
}

static void report_missing(struct state_compare *compare, const struct state_key *key, const char *where) {
    if (begin_difference(compare)) {
        append(compare, "\"%.*s\" is missing at %s", SHOWN_NAME_BYTES, key->name, where);
    }
}

static const char *key_text(const struct state_key *key, char *text, size_t size) {
    snprintf(text, size, "%s[%" PRIu64 "]%s", datatype_name(key->datatype), key->count,
             key->free ? " (content may differ)" : "");
    return text;
}

static void report_other(struct state_compare *compare, const struct state_key *mine,
                         const struct state_key *theirs) {
    char here[64], there[64];
    if (begin_difference(compare)) {
        append(compare, "\"%.*s\" is %s at %s and %s at %s", SHOWN_NAME_BYTES, mine->name,
               key_text(theirs, there, sizeof there), compare->theirs, key_text(mine, here, sizeof here),
               compare->mine);
    }
}

/* As the other side would read it: names are shown as they arrive there. */
static bool next_of_mine(const struct state_compare *compare, struct state_key *key) {
    uint8_t bytes[MAX_STATE_KEY_BYTES];
    size_t used;
    if (compare->next >= compare->table->tensor_count) {
        return false;
    }
    state_table_key(compare->table, compare->next, key);
    return state_key_decode(bytes, state_key_encode(key, bytes), key, &used) == DECODE_OK;
}

static void compare_key(struct state_compare *compare, const struct state_key *theirs) {
    struct state_key mine;
    while (next_of_mine(compare, &mine)) {
        int order = strcmp(mine.name, theirs->name);
        if (order > 0) {
            break;
        }
        compare->next++;
        if (order < 0) {
            report_missing(compare, &mine, compare->theirs);
            continue;
        }
        if (mine.datatype != theirs->datatype || mine.count != theirs->count || mine.free != theirs->free) {
            report_other(compare, &mine, theirs);
        }
        return;
    }
    report_missing(compare, theirs, compare->mine);
}

uint8_t *state_compare_room(struct state_compare *compare, size_t *size) {
    *size = sizeof compare->buffer - compare->filled;
    return compare->buffer + compare->filled;
}

bool state_compare_take(struct state_compare *compare, size_t size) {
    compare->filled += size;
    size_t at = 0;
    enum decode_status status = DECODE_OK;
    while (status == DECODE_OK) {
        struct state_key key;
        size_t used = 0;
        status = state_key_decode(compare->buffer + at, compare->filled - at, &key, &used);
        if (status == DECODE_OK) {
            compare_key(compare, &key);
            at += used;
        }
    }
    memmove(compare->buffer, compare->buffer + at, compare->filled - at);
    compare->filled -= at;
    return status != DECODE_BAD;
}

bool state_compare_end(struct state_compare *compare) {
    struct state_key mine;
    while (!state_compare_is_full(compare) && next_of_mine(compare, &mine)) {
        compare->next++;
        report_missing(compare, &mine, compare->theirs);
    }
    return compare->filled == 0;
}
