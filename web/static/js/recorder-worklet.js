// Runs beside the sound card: hands the samples over to recorder.js, some 40 ms of them at a time.
const BLOCKS = 16;

registerProcessor("taker", class extends AudioWorkletProcessor {
  held = [];

  process(inputs) {
    const samples = inputs[0]?.[0];
    if (samples) this.held.push(...samples);
    if (this.held.length < BLOCKS * 128) return true;
    this.port.postMessage(Float32Array.from(this.held));
    this.held = [];
    return true;
  }
});
