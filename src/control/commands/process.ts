// Commands about the daemon itself: objects, character devices, versions, the schema, the end.

import { type Command, command } from "../command.ts";
import { chardevBackend } from "../qapi/chardev.ts";
import { EVENTS } from "../qapi/events.ts";
import { introspect } from "../qapi/introspection.ts";
import { objectOptions } from "../qapi/object.ts";
import { chardevInfo, commandInfo, versionInfo } from "../qapi/results.ts";
import { any, array, empty, str, struct } from "../qapi/types.ts";
import { qmpCapabilitiesData } from "../qmp-negotiation.ts";
import { VERSION_INFO } from "../version.ts";

const byId = struct("IdArguments", "", { id: str });

/** `all` gives every command there is, with these. */
export function processCommands(all: () => readonly Command[]): readonly Command[] {
  return [
    command({
      name: "object-add",
      doc: "Makes an object: TLS credentials, secrets, authorization. Threads and limits are accepted and change nothing.",
      data: objectOptions,
      run: (daemon, options) => daemon.objects.add(options),
    }),
    command({
      name: "object-del",
      doc: "Forgets an object.",
      data: byId,
      run: (daemon, { id }) => daemon.objects.remove(id),
    }),
    command({
      name: "chardev-add",
      doc: "Opens a character device.",
      data: struct("ChardevAddArguments", "", { id: str, backend: chardevBackend }),
      run: (daemon, { id, backend }) => daemon.chardevs.add(id, backend),
    }),
    command({
      name: "chardev-remove",
      doc: "Closes a character device that nobody uses.",
      data: byId,
      run: (daemon, { id }) => daemon.chardevs.remove(id),
    }),
    command({
      name: "query-chardev",
      doc: "Lists character devices.",
      data: empty,
      returns: array(chardevInfo),
      run: (daemon) =>
        daemon.chardevs.all.map((chardev) => ({
          label: chardev.id,
          filename: chardev.filename,
          "frontend-open": chardev.isOpen,
        })),
    }),
    command({
      name: "qmp_capabilities",
      doc: "Ends the negotiation, once. There are no capabilities to enable.",
      data: qmpCapabilitiesData,
      run: () => {},
    }),
    command({
      name: "query-version",
      doc: "Tells the release of the reference that this follows, and ours as the package.",
      data: empty,
      returns: versionInfo,
      run: () => VERSION_INFO,
    }),
    command({
      name: "query-commands",
      doc: "Lists all commands.",
      data: empty,
      returns: array(commandInfo),
      run: () => all().map(({ name }) => ({ name })),
    }),
    command({
      name: "query-qmp-schema",
      doc: "Describes all commands and events with their members.",
      data: empty,
      returns: array(any),
      run: () => introspect(all(), EVENTS),
    }),
    command({
      name: "quit",
      doc: "Ends the daemon; the answer comes when everything is flushed and closed.",
      data: empty,
      async run(daemon) {
        try {
          await daemon.shutDown();
        } finally {
          // The answer goes out first.
          void daemon.clock.turn().then(() => daemon.quit());
        }
      },
    }),
  ];
}
