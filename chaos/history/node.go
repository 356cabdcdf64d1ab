package history

// NodeOf returns the number, from 1 to n, of the node that has a key. The n nodes share a cluster's
// slots evenly and in their order. It returns 0 if n is 0. The key must have no hash tag.
func NodeOf(key string, n int) int {
	slot := int(crc16(key) % slots)
	for i := range n {
		if slot < slots*(i+1)/n {
			return i + 1
		}
	}
	return 0
}

// slots is how many slots a Redis Cluster has.
const slots = 16384

// crc16 is CRC-16/XMODEM, by which Redis Cluster chooses the slot of a key.
func crc16(key string) (crc uint16) {
	for _, b := range []byte(key) {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}
