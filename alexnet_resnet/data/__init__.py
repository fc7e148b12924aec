"""Examples in, batches of bytes out. Photometry (the mean, the lighting) is not here but on the device, in `ops`.

Where examples come from: `sources` (which one a configuration names; digits and .npz), `tfds_folder`, `image_folder`,
`prepared`, all giving what `examples` defines; `records` and `encoded` read TFRecord files and images' headers.
Which of them stand in which batch and what is seen of them: `draws` (random numbers), `plan` (batches), `views`
(windows). Who reads them: `loaders` names `pipeline` (tf.data, over `reading` and `faults`) or its twin `arrays` (on
the device). What they say together: `statistics` (exact sums), `normalisation` (the mean and lighting's axes of a run).
Writing the prepared form: `preparation`, `shards`, `workers`. For people: `labels`, `photos`, the command `show`.

TensorFlow is imported in `pipeline` only. All but the command import no other room of the package than `ops`.
"""
