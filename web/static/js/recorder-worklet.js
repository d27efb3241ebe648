// Runs beside the sound card: hands each block of samples over to recorder.js.
registerProcessor("taker", class extends AudioWorkletProcessor {
  process(inputs) {
    const samples = inputs[0]?.[0];
    if (samples) this.port.postMessage(samples.slice());
    return true;
  }
});
