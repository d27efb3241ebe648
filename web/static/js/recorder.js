// Records the microphone as a WAV file: what is recorded is what is sent, at its known length and without a codec.

export const MOST_SECONDS = 600;

/** Browsers lend the microphone to pages on https or on this very machine only. */
export const canRecord = () => Boolean(window.isSecureContext && navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode);

export class Recorder {
  /** `onLevel` gets the loudness, 0 to 1, of each block; `onFull` is called when no more is taken. */
  constructor(onLevel, onFull) {
    this.onLevel = onLevel;
    this.onFull = onFull;
    this.blocks = [];
    this.samples = 0;
  }

  /** Throws what getUserMedia throws, such as NotAllowedError. */
  async start() {
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: false } });
    try {
      this.context = new AudioContext();
      await this.context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
      const taker = new AudioWorkletNode(this.context, "taker", { numberOfOutputs: 0 });
      taker.port.onmessage = ({ data }) => this.take(data);
      this.context.createMediaStreamSource(this.stream).connect(taker);
      await this.context.resume();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  get seconds() {
    return this.context ? this.samples / this.context.sampleRate : 0;
  }

  take(block) {
    if (this.seconds >= MOST_SECONDS) return;
    const taken = new Int16Array(block.length);
    let loudest = 0;
    block.forEach((sample, index) => {
      loudest = Math.max(loudest, Math.abs(sample));
      taken[index] = Math.max(-1, Math.min(1, sample)) * 32767;
    });
    this.blocks.push(taken);
    this.samples += taken.length;
    this.onLevel(loudest);
    if (this.seconds >= MOST_SECONDS) this.onFull();
  }

  /** Stop; returns the recording as a file. */
  stop() {
    const rate = this.context.sampleRate;
    this.close();
    return new File([wavHeader(this.samples, rate), ...this.blocks], "recording.wav", { type: "audio/wav" });
  }

  close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.context?.close();
  }
}

/** The 44 bytes before 16-bit mono samples. */
function wavHeader(samples, rate) {
  const header = new DataView(new ArrayBuffer(44));
  const word = (at, text) => [...text].forEach((letter, index) => header.setUint8(at + index, letter.charCodeAt(0)));
  word(0, "RIFF");
  header.setUint32(4, 36 + samples * 2, true);
  word(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, rate, true);
  header.setUint32(28, rate * 2, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  word(36, "data");
  header.setUint32(40, samples * 2, true);
  return header.buffer;
}
