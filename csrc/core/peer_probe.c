/* Links that the master has tried before an epoch needs them. */
#include <stdio.h>
#include <string.h>

#include "core/peer_state.h"

static void answer(struct peer *peer, const struct id *key, bool reached, const char *reason) {
    struct message message = {.type = MESSAGE_PROBED};
    message.as.probed.key = *key;
    message.as.probed.reached = reached;
    snprintf(message.as.probed.reason, sizeof message.as.probed.reason, "%s", reason);
    peer_send(peer, &message);
}

static struct peer_probe *find(struct peer *peer, const struct id *key) {
    for (int i = 0; i < MAX_PROBES; i++) {
        if (peer->probes[i].used && id_equal(&peer->probes[i].key, key)) {
            return &peer->probes[i];
        }
    }
    return NULL;
}

static void end(struct peer *peer, struct peer_probe *probe) {
    struct peer_action action = {.kind = PEER_LINK_CLOSE, .link.key = probe->key};
    probe->used = false;
    peer->perform(peer->context, &action);
}

/* One that is up has been answered: it makes room. */
static struct peer_probe *find_free(struct peer *peer) {
    struct peer_probe *up = NULL;
    for (int i = 0; i < MAX_PROBES; i++) {
        if (!peer->probes[i].used) {
            return &peer->probes[i];
        }
        up = peer->probes[i].up ? &peer->probes[i] : up;
    }
    if (up != NULL) {
        end(peer, up);
    }
    return up;
}

void peer_probe_start(struct peer *peer, const struct message_probe *probe) {
    if (peer->phase != PEER_PENDING && peer->phase != PEER_MEMBER) {
        return;
    }
    if (id_is_zero(&probe->member.id)) {
        answer(peer, &probe->key, true, "");
        return;
    }
    struct peer_probe *free = find(peer, &probe->key) == NULL ? find_free(peer) : NULL;
    if (free == NULL) {
        answer(peer, &probe->key, false, "it tries too many links already");
        return;
    }
    *free = (struct peer_probe){.used = true, .opener = probe->opener, .key = probe->key};
    struct peer_action action = {.kind = probe->opener ? PEER_LINK_OPEN : PEER_LINK_EXPECT,
                                 .member = &probe->member,
                                 .probe = true,
                                 .link = {.streams = 1, .opener = probe->opener, .key = probe->key}};
    peer->perform(peer->context, &action);
}

void peer_probe_link_up(struct peer *peer, const struct id *key) {
    struct peer_probe *probe = find(peer, key);
    if (probe != NULL && (peer->phase == PEER_PENDING || peer->phase == PEER_MEMBER)) {
        probe->up = true;
        answer(peer, key, true, "");
    }
}

void peer_probe_link_down(struct peer *peer, const struct id *key, const char *reason) {
    struct peer_probe *probe = find(peer, key);
    if (probe != NULL) {
        if (!probe->up && (peer->phase == PEER_PENDING || peer->phase == PEER_MEMBER)) {
            answer(peer, key, false, reason);
        }
        end(peer, probe);
    }
}

void peer_probe_heartbeat(struct peer *peer) {
    for (int i = 0; i < MAX_PROBES; i++) {
        struct peer_probe *probe = &peer->probes[i];
        if (probe->used && probe->up && probe->opener && ++probe->heartbeats >= 2) {
            end(peer, probe);
        }
    }
}

void peer_probe_leave(struct peer *peer) {
    for (int i = 0; i < MAX_PROBES; i++) {
        if (peer->probes[i].used) {
            end(peer, &peer->probes[i]);
        }
    }
}
