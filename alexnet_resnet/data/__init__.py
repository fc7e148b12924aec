"""Examples in, batches of bytes out.

`sources` finds the examples of a split, `plan` decides which of them stand in which batch and how each is cropped,
`pipeline` reads them with tf.data. Photometry (the mean, the lighting) is not here but on the device, in `ops`.
"""
