"""Text from a decoder, byte by byte, in any mode or drafted by the low one."""
