def block(x, norm_1, attention, norm_2, feed_forward):
    x = norm_1(x)
    h = x + attention(x)
    h = norm_2(h)
    return h + feed_forward(h)
