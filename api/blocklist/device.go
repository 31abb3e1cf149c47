package blocklist

// DeviceHeaderBytes is the length of the commit record at the start of a Block volume; the list follows it.
const DeviceHeaderBytes = 4096

const deviceMagic = "\x89CBLDEV\n"
