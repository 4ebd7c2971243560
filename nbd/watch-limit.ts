// How many clients are watched at a time. A watch goes on behind the end of its connection until the client
// has read or is gone, so the limit of connections does not bound it.

import type { UnreadWatch } from "./unread.ts";

type WatchClient = (descriptor: number) => UnreadWatch | undefined;

/** `watch` for up to `max` clients at a time; undefined for those that are too many. */
export function limitWatches(watch: WatchClient, max: number): WatchClient {
  let open = 0;
  return (descriptor) => {
    if (open >= max) return undefined;
    const watching = watch(descriptor);
    if (watching === undefined) return undefined;
    open++;
    return {
      unreadBytes: () => watching.unreadBytes(),
      socketClosed: () => watching.socketClosed(),
      close: () => {
        open--;
        watching.close();
      },
    };
  };
}
