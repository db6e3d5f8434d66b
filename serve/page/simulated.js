// A bearing with a damaged outer race, from its mechanics: impacts at BPFO that ring at 3 kHz, and noise.

export const RATE_HZ = 12000, RPM = 1750;
const BPFO_ORDER = 3.5848; // SKF 6205
const SECONDS = 2, RING_HZ = 3000, DECAY_PER_S = 900;

export function outerRace() {
  const random = generator(7);
  const samples = Array.from({ length: SECONDS * RATE_HZ }, () => 0.25 * normal(random));
  const period = 60 / (RPM * BPFO_ORDER);
  for (let at = 0; at < SECONDS; at += period * (1 + 0.01 * normal(random))) {
    const first = Math.ceil(at * RATE_HZ);
    const strength = 1 + 0.15 * normal(random);
    for (let index = first; index < Math.min(first + 80, samples.length); index += 1) {
      const since = index / RATE_HZ - at;
      samples[index] += strength * Math.exp(-DECAY_PER_S * since) * Math.sin(2 * Math.PI * RING_HZ * since);
    }
  }
  return samples.map((value) => Number(value.toFixed(5)));
}

// Always the same recording: mulberry32.
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

function normal(random) {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}
