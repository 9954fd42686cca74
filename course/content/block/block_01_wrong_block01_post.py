def block(x, norm_1, attention, norm_2, feed_forward):
    h = norm_1(attention(x) + x)
    return norm_2(feed_forward(h) + h)
