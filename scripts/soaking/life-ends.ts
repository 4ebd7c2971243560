const SHORT_LIVES_MAX = 8;
const SHORT_LIFE_SECONDS_MIN = 4;

/** When the lives end, in seconds of the run: half of the time is one life, for what grows slowly. */
export function lifeEnds(seconds: number): number[] {
  const half = seconds / 2;
  const count = Math.max(2, Math.min(SHORT_LIVES_MAX, Math.floor(half / SHORT_LIFE_SECONDS_MIN)));
  return [half, ...Array.from({ length: count }, (_, index) => half + ((index + 1) * half) / count)];
}
